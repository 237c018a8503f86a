"""The defining property of every cache method, against attention matrices of the stock model."""

import pytest
import torch
import torch.nn.functional as F

from tests.compression.conftest import cache_name
from unimodal.compression import CacheCompressor
from unimodal.compression.kv.dapq import DapQ, make_pseudo_queries
from unimodal.compression.kv.fasa import FASA, compute_pair_logits, find_dominant_pairs
from unimodal.compression.kv.h2o import H2O
from unimodal.compression.kv.keyformer import Keyformer
from unimodal.compression.kv.snapkv import SnapKV
from unimodal.compression.kv.token_sparse import TokenSparseAttention
from unimodal.compression.kv.tokenselect import TokenSelect, count_votes
from unimodal.compression.running.cache_executor import choose_slots, index_slots
from unimodal.compression.running.look import Look
from unimodal.compression.running.slots import SlotLayer, Slots


class Spy(CacheCompressor):
    """Passes what another method sees on to a list."""

    def __init__(self, method, looks):
        super().__init__(method.keep, scope=method.scope, recent=method.recent)
        self.method, self.looks = method, looks
        type(self).acts, type(self).at_every_step = method.acts, method.at_every_step

    def score(self, look):
        scores = self.method.score(look)
        self.looks.append((look, scores))
        return scores

    def observe(self, look):
        self.method.observe(look)


@pytest.fixture
def row(prompt, span):
    return prompt([3, 4], span("image", 1), span("audio", 2), [5])


@pytest.fixture
def weights(model, row):
    """The attention of every layer over the prompt, [H, N, N] each, by the stock eager kernel."""
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        out = model(torch.tensor([row]), output_attentions=True)
    model.set_attn_implementation("sdpa")
    return [layer[0] for layer in out.attentions]


def spied(method, model, vocabulary, rows, read, **kwargs):
    looks = []
    with Spy(method, looks)(model, vocabulary):
        read(model, rows, **kwargs)
    return looks


def by_group(attention):
    """[H, L] -> [K, L]"""
    return attention.unflatten(0, (2, 2)).mean(1)


def test_attention_rows_are_those_of_the_kernel(model, vocabulary, row, read, weights):
    """In the first layer exactly, in all of them: nothing was dropped before the scores were taken."""
    for layer, (look, _) in enumerate(spied(SnapKV(0.5), model, vocabulary, [row], read)):
        assert torch.allclose(look.attend_newest(len(row))[0], weights[layer], atol=1e-5)


def test_snapkv_keeps_what_the_window_attends_to(model, vocabulary, row, read, weights):
    method = SnapKV(0.3, window=6, kernel=3)
    for layer, (look, scores) in enumerate(spied(method, model, vocabulary, [row], read)):
        expected = F.avg_pool1d(by_group(weights[layer][:, -6:].mean(1)), 3, 1, 1)
        assert torch.allclose(scores[0], expected, atol=1e-6)
        keep = choose_slots(scores, look.slots, torch.tensor([8]), 1)[0]
        free = look.slots.evictable[0, 0]
        assert int(free.sum()) == 27 and keep[:, ~free].all() and (keep[:, free].sum(-1) == 8).all()
        for head in range(2):
            worst_kept = expected[head][keep[head] & free].min()
            assert worst_kept >= expected[head][~keep[head]].max() - 1e-6
    assert not torch.equal(keep[0], keep[1])  # every head its own
    assert all(layer.keys.shape[2] == len(row) - 27 + 8 + 3 for layer in read.cache.layers)
    assert read.cache.get_seq_length() == len(row) + 3


def test_a_step_after_eviction_sees_exactly_the_kept_entries(make_model, vocabulary, row, read):
    """One layer, one key/value head: the stock forward with the dropped columns masked for the later rows."""
    model, steps = make_model(num_layers=1, num_kv_heads=1), [7, 8]
    looks = []
    with Spy(SnapKV(0.3), looks)(model, vocabulary):
        found = read(model, [row], steps)[0]
    look, scores = looks[0]
    keep = choose_slots(scores, look.slots, torch.tensor([8]), 1)[0, 0]
    num = len(row) + len(steps)
    seen = torch.ones(num, num, dtype=torch.bool).tril()
    seen[len(row) :, : len(row)] &= keep
    mask = torch.zeros(num, num).masked_fill(~seen, -torch.inf)[None, None]
    with torch.inference_mode():
        expected = model(torch.tensor([row + steps]), attention_mask=mask).logits[0, len(row) - 1 :]
    assert torch.allclose(found, expected, atol=1e-5)


def test_compacted_keys_are_rotated_again(make_model, vocabulary, row, read):
    """One layer: the keys that stay are those of a prompt that never had the others, at its positions."""
    model = make_model(num_layers=1, num_kv_heads=1)
    looks = []
    with Spy(SnapKV(0.3), looks)(model, vocabulary) as session:
        session.method.positions = "compacted"
        found = read(model, [row], [7])[0]
    look, scores = looks[0]
    keep = choose_slots(scores, look.slots, torch.tensor([8]), 1)[0, 0]
    kept = [token for token, stays in zip(row, keep.tolist(), strict=True) if stays]
    with torch.inference_mode():
        expected = model(torch.tensor([[*kept, 7]])).logits[0, -1]
    assert torch.allclose(found[1], expected, atol=1e-5)


def test_h2o_sums_all_attention_and_goes_on(model, vocabulary, row, read, weights):
    looks = spied(H2O(0.4), model, vocabulary, [row], read)
    for layer in range(4):
        assert torch.allclose(looks[layer][1][0], by_group(weights[layer].sum(1)), atol=1e-4)
    first, second = looks[0][1], looks[4][1]  # layer 0: the prompt, then a step over what was kept
    assert second.shape[2] == len(row) - 27 + 11 + 1 and float(second.sum() - first.sum()) < 2
    assert torch.allclose(second.sum(-1), read.cache.layers[0].score[..., :-2].sum(-1), atol=2.1)


def test_h2o_holds_its_budget_while_words_are_written(model, vocabulary, row, read):
    """Scope prompt: heavy hitters and a window, and the cache stops growing; media marks stay."""
    steps = [7 + i % 9 for i in range(20)]
    with H2O(0.3, scope="prompt", recent=4)(model, vocabulary):
        read(model, [row], steps[:8])
        grown = [layer.keys.shape[2] for layer in read.cache.layers]
        read(model, [row], steps)
    assert [layer.keys.shape[2] for layer in read.cache.layers] == grown
    slots = read.cache.layers[0].slots
    protected = slots.valid & ~slots.evictable[:, 0]
    controls = sum(30 <= token < 44 for token in row)
    assert int(protected.sum()) == controls
    newest = slots.positions[0, :, -4:]
    assert (newest == torch.arange(len(row) + 16, len(row) + 20)).all()  # the window, at the original positions


def test_keyformer_without_noise_at_temperature_one_is_h2o(model, vocabulary, row, read, monkeypatch):
    noisy = spied(Keyformer(0.4), model, vocabulary, [row], read)
    plain = spied(H2O(0.4), model, vocabulary, [row], read)
    assert not torch.allclose(noisy[0][1], plain[0][1], atol=1e-3)
    monkeypatch.setattr(Keyformer, "_draw_noise", lambda self, look: torch.zeros(1, 1, 1))
    quiet = spied(Keyformer(0.4, last=1.0), model, vocabulary, [row], read)
    for (_, a), (_, b) in zip(quiet, plain, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_keyformer_noise_belongs_to_head_position_and_seed(model, vocabulary, row, read):
    look = spied(Keyformer(0.4), model, vocabulary, [row], read)[0][0]
    noise = Keyformer()._draw_noise(look)
    assert torch.equal(noise, Keyformer()._draw_noise(look)) and not torch.equal(
        noise, Keyformer(seed=1)._draw_noise(look)
    )
    later = Look(**{**vars(look), "slots": look.slots.cut(9)})
    assert torch.equal(Keyformer()._draw_noise(later), noise[..., :9])
    assert abs(float(noise.mean()) - 0.577) < 0.3 and noise[0].std(0).min() > 0  # Gumbel's mean; heads differ


def test_dapq_queries_stand_where_the_answer_will(model, vocabulary, row, read):
    """Rotated queries are those the model computes for the same tokens at positions further on."""
    seen = spied(DapQ(0.4, window=5), model, vocabulary, [row], read)[0][0]
    pseudo = make_pseudo_queries(seen, 5)
    attention = model.model.layers[0].self_attn
    with torch.inference_mode():
        tokens = model.model.layers[0].input_layernorm(model.model.embed_tokens(torch.tensor([row[-5:]])))
        query = attention.q_proj(tokens).view(1, 5, 4, 8).transpose(1, 2)
        at = torch.arange(len(row), len(row) + 5)[None]
        cos, sin = model.model.rotary_emb(query, at)
        half = torch.cat([-query[..., 4:], query[..., :4]], -1)
    assert torch.allclose(pseudo, query * cos + half * sin, atol=1e-5)


def test_dapq_scores_by_the_attention_of_its_pseudo_queries(model, vocabulary, row, read):
    """Softmax of pseudo-queries over the keys, written out; not what the queries in their own places see."""
    for look, scores in spied(DapQ(0.4, window=5, kernel=3), model, vocabulary, [row], read):
        keys = look.keys.repeat_interleave(2, 1)
        later = torch.ones(5, len(row), dtype=torch.bool).triu(len(row) - 4)

        def mean_attention(query, keys=keys, later=later, look=look):
            logits = (query @ keys.transpose(2, 3) * look.scaling).masked_fill(later, -torch.inf)
            return F.avg_pool1d(by_group(logits.softmax(-1).mean(2)[0]), 3, 1, 1)

        assert torch.allclose(scores[0], mean_attention(make_pseudo_queries(look, 5)), atol=1e-6)
        assert not torch.allclose(scores[0], mean_attention(look.query[:, :, -5:]), atol=1e-3)


def test_token_sparse_scores_by_the_last_queries(model, vocabulary, row, read, weights):
    """In the first layer, before anything is sparse: the mean attention of the window, by group."""
    _, scores = spied(TokenSparseAttention(0.3, window=8), model, vocabulary, [row], read)[0]
    assert torch.allclose(scores[0], by_group(weights[0][:, -8:].mean(1)), atol=1e-6)


def test_tokenselect_votes_and_drops_nothing(model, vocabulary, row, read):
    looks = spied(TokenSelect(0.3, reuse=2.0), model, vocabulary, [row], read)
    assert len(looks) == 4 * 3 and all(not look.first for look, _ in looks)
    assert [layer.keys.shape[2] for layer in read.cache.layers] == [len(row) + 3] * 4
    look, scores = looks[0]
    probs = look.attend_newest(1)[0, :, 0]  # the softmax of every head
    assert torch.allclose(scores[0, 0], probs.sum(0), atol=1e-5)
    assert torch.equal(scores[:, 0], scores[:, 1])  # all heads attend to the same
    assert torch.allclose(count_votes(look).sum(), torch.tensor(4.0), atol=1e-4)


def test_tokenselect_reuses_a_choice_while_queries_are_alike(model, vocabulary, row, read):
    always = spied(TokenSelect(0.3, reuse=-1.0), model, vocabulary, [row], read)
    first, second = always[0][1], always[4][1]
    assert torch.equal(second[..., :-1], first) and (second[..., -1] == 0).all()
    never = spied(TokenSelect(0.3, reuse=2.0), model, vocabulary, [row], read)
    assert not torch.allclose(never[4][1][..., :-1], never[0][1], atol=1e-4)


def test_fasa_pairs_add_up_to_the_logits_and_the_dominant_agree_most(model, vocabulary, row, read):
    looks = spied(FASA(0.3, num_pairs=2), model, vocabulary, [row], read)
    look, scores = looks[0]
    parts = compute_pair_logits(look, look.query)  # [B, H, F, Q, L]
    keys = look.keys.repeat_interleave(2, 1)
    whole = look.query @ keys.transpose(2, 3) * look.scaling
    assert torch.allclose(parts.sum(2), whole, atol=1e-5)
    pairs = find_dominant_pairs(look, look.query, 2, 0.3)
    assert pairs.shape == (1, 4, 2)
    every = spied(FASA(0.3, num_pairs=4), model, vocabulary, [row], read)
    assert torch.allclose(every[0][1][0], by_group(whole[0, :, 0]), atol=1e-4)  # with all pairs: the logits themselves
    assert not torch.allclose(scores, every[0][1], atol=1e-3)


def test_fasa_finds_the_pair_that_carries_the_scores():
    """Keys that differ in one frequency only: that pair decides, and is found."""
    torch.manual_seed(0)
    query, keys = torch.randn(1, 2, 6, 8), torch.full((1, 1, 20, 8), 0.1)
    keys[..., [2, 6]] = torch.randn(1, 1, 20, 2) * 3  # pair 2 of 4
    free = torch.ones(1, 20, dtype=torch.bool)
    slots = Slots(free, torch.arange(20)[None, None], free[:, None], torch.zeros(1, dtype=torch.int64))
    look = Look(query, keys, slots, SlotLayer(), 0.35, torch.nn.Identity(), True)
    assert (find_dominant_pairs(look, query, 1, 0.3) == 2).all()


def test_token_sparse_attends_densely_among_the_chosen_only(make_model, vocabulary, row, read):
    """One layer: each head's rows over its own tokens, zeros for the rest; the cache keeps everything."""
    model = make_model(num_layers=1)
    inputs, looks = [], []
    hook = model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with Spy(TokenSparseAttention(0.3, window=8), looks)(model, vocabulary):
        read(model, [row])
    hook.remove()
    look, scores = looks[0]
    keep = choose_slots(scores, look.slots, torch.tensor([8]), 1)[0]  # [K, L]
    out = inputs[0].view(len(row), 4, 8)
    value = read.cache.layers[0].values[0, :, : len(row)]
    for head in range(4):
        stays = keep[head // 2]
        assert (out[~stays, head] == 0).all()
        q, k, v = look.query[:, head, stays], look.keys[:, head // 2, stays], value[None, head // 2, stays]
        dense = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=look.scaling)[0]
        assert torch.allclose(out[stays, head], dense, atol=1e-5)
    assert len(looks) == 1 and read.cache.layers[0].keys.shape[2] == len(row) + 3


def test_rows_keep_their_own_budgets():
    """Ranks are within the entries that may go; rows that keep fewer have padding in front."""
    valid = torch.tensor([[True] * 6, [False] * 2 + [True] * 4])
    free = torch.tensor([[False, True, True, True, True, False], [False, False, False, True, True, False]])[:, None]
    slots = Slots(valid, torch.arange(6).expand(2, 1, 6), free, torch.zeros(2, dtype=torch.int64), plain=False)
    scores = torch.tensor([[[9.0, 1, 4, 3, 2, 9]], [[9.0, 9, 9, 1, 2, 9]]])
    keep = choose_slots(scores, slots, torch.tensor([2, 1]), 0)
    assert keep[:, 0].int().tolist() == [[1, 0, 1, 1, 0, 1], [0, 0, 1, 0, 1, 1]]
    index, kept = index_slots(keep)
    assert index[0, 0].tolist() == [0, 2, 3, 5] and index[1, 0, 1:].tolist() == [2, 4, 5]
    assert kept.int().tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]


def test_a_question_more_on_a_selected_cache(model, vocabulary, row, read):
    """Several tokens at once behind the prompt: causal among themselves, like one by one."""
    for method in (FASA(0.3), TokenSelect(0.3, reuse=2.0)):
        with torch.inference_mode(), method(model, vocabulary):
            read(model, [row], [])
            out = model(torch.tensor([[7, 8]]), **{cache_name(model): read.cache}, use_cache=True)
        assert torch.isfinite(out.logits).all() and read.cache.get_seq_length() == len(row) + 2


def test_settings():
    for wrong in (lambda: SnapKV(kernel=4), lambda: DapQ(window=0), lambda: FASA(num_pairs=0), lambda: H2O(recent=-1),
                  lambda: H2O(scope="all"), lambda: TokenSparseAttention(window=0)):  # fmt: skip
        with pytest.raises(ValueError):
            wrong()

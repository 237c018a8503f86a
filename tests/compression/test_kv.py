"""The defining property of every cache method, against attention matrices of the stock model."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers import DynamicCache

from tests.compression.conftest import cache_name
from unimodal.compression.kv.dapq import DapQ, make_pseudo_queries
from unimodal.compression.kv.fasa import FASA, choose_pairs, compute_pair_logits, measure_agreement
from unimodal.compression.kv.h2o import H2O
from unimodal.compression.kv.keyformer import Keyformer
from unimodal.compression.kv.snapkv import SnapKV
from unimodal.compression.kv.token_sparse import TokenSparseAttention
from unimodal.compression.kv.tokenselect import TokenSelect
from unimodal.compression.running.attention_rows import AttentionRule
from unimodal.compression.running.cache_executor import choose_slots, index_slots
from unimodal.compression.running.look import Look
from unimodal.compression.running.rotation import LayerRotation
from unimodal.compression.running.session import CompressionSession
from unimodal.compression.running.slots import SlotLayer, Slots


class Spy:
    """Another method, whose looks and scores go to a list."""

    def __init__(self, method, looks):
        self.__dict__.update(vars(method), method=method, looks=looks)

    def __getattr__(self, name):
        return getattr(self.method, name)

    def score(self, look):
        scores = self.method.score(look)
        self.looks.append((look, scores))
        return scores


def open_spy(method, looks, model, vocabulary):
    return CompressionSession(Spy(method, looks), model, vocabulary)


def choose(scores, slots, budget, recent=0):
    """`choose_slots` for one row, with the same number of recent slots."""
    return choose_slots(scores, slots, torch.tensor([budget]), torch.tensor([recent]))[0]


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
    with open_spy(method, looks, model, vocabulary):
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
    """The window of 64 ends at the newest span: the sound's end mark, a word, and two marks of turns."""
    for layer, (look, scores) in enumerate(spied(SnapKV(0.3, kernel=3), model, vocabulary, [row], read)):
        mean = by_group(weights[layer][:, -4:].mean(1))[:, :-4]
        expected = F.pad(F.avg_pool1d(mean, 3, 1, 1), (0, 4))
        assert torch.allclose(scores[0], expected, atol=1e-6)
        keep = choose(scores, look.slots, 8, 1)
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
    with open_spy(SnapKV(0.3), looks, model, vocabulary):
        found = read(model, [row], steps)[0]
    look, scores = looks[0]
    keep = choose(scores, look.slots, 8, 1)[0]
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
    with open_spy(SnapKV(0.3, positions="compacted"), looks, model, vocabulary):
        found = read(model, [row], [7])[0]
    look, scores = looks[0]
    keep = choose(scores, look.slots, 8, 1)[0]
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
    assert torch.allclose(second.sum(-1), read.cache.layers[0].get_state(0).score[..., :-2].sum(-1), atol=2.1)


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
    plain = spied(H2O(0.4, recent_share=0.3), model, vocabulary, [row], read)
    assert not torch.allclose(noisy[0][1], plain[0][1], atol=1e-3)
    monkeypatch.setattr(Keyformer, "draw_noise", lambda self, look, at: torch.zeros(1, 1, 1, 1))
    quiet = spied(Keyformer(0.4, last=1.0), model, vocabulary, [row], read)
    for (_, a), (_, b) in zip(quiet, plain, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_keyformer_draws_noise_for_every_logit(model, vocabulary, row, read):
    """It belongs to seed, head, and the positions of query and key; in a whole row it averages out over queries,
    so that the choice stays near H2O's (Jaccard 0.78 in the authors' code, 0.53 with noise by key alone)."""
    look, scores = spied(Keyformer(0.4), model, vocabulary, [row], read)[0]
    at = look.find_newest(len(row))
    noise = Keyformer().draw_noise(look, at)  # [1, H, L, L]
    assert torch.equal(noise, Keyformer().draw_noise(look, at))
    assert not torch.equal(noise, Keyformer(seed=1).draw_noise(look, at))
    later = replace(look, slots=look.slots.cut(9))
    assert torch.equal(Keyformer().draw_noise(later, at[:, :4]), noise[:, :, :4, :9])
    assert abs(float(noise.mean()) - 0.577) < 0.06 and abs(float(noise.var()) - 1.645) < 0.2  # Gumbel's
    assert noise[0].std(0).min() > 0 and noise[0, 0].std(0).min() > 0.3 and noise[0, 0].std(1).min() > 0.3
    later_slots = torch.ones(len(row), len(row), dtype=torch.bool).triu(1)
    logits = look.query @ look.keys.repeat_interleave(2, 1).transpose(2, 3) * look.rule.scaling
    expected = (logits + noise).masked_fill(later_slots, -torch.inf).softmax(-1).sum(2)
    assert torch.allclose(scores, look.average_groups(expected), atol=1e-4)


def test_keyformer_warms_up_with_every_token_of_the_answer(model, vocabulary, row, read, monkeypatch):
    """1 at the prompt, then 0.01 more a token, although entries are dropped at every step."""
    monkeypatch.setattr(Keyformer, "draw_noise", lambda self, look, at: torch.zeros(1, 1, 1, 1))
    looks = spied(Keyformer(0.4), model, vocabulary, [row], read)
    for step in (1, 2):
        (old, past), (look, scores) = looks[4 * step - 4], looks[4 * step]
        logits = (look.query[:, :, 0, None] * look.keys.repeat_interleave(2, 1)).sum(-1) * look.rule.scaling
        own = look.average_groups((logits / (1 + 0.01 * step)).softmax(-1))
        before = past.gather(2, kept_slots(old, look))
        assert torch.allclose(scores, F.pad(before, (0, 1)) + own, atol=1e-5)


def kept_slots(old, new):
    """The slots of an earlier look whose entries are in a later one, by their positions: int64 [B, K, L - 1]."""
    positions = new.slots.positions[..., :-1]
    return torch.searchsorted(
        old.slots.positions.expand(-1, positions.shape[1], -1).contiguous(), positions.contiguous()
    )


def test_dapq_queries_stand_where_the_answer_will(model, vocabulary, row, read):
    """Rotated queries are those the model computes for the same tokens at positions further on."""
    seen = spied(DapQ(0.4, window=5), model, vocabulary, [row], read)[0][0]
    pseudo = make_pseudo_queries(seen, torch.ones(1, 5, dtype=torch.bool))
    attention = model.model.layers[0].self_attn
    with torch.inference_mode():
        tokens = model.model.layers[0].input_layernorm(model.model.embed_tokens(torch.tensor([row[-5:]])))
        query = attention.q_proj(tokens).view(1, 5, 4, 8).transpose(1, 2)
        at = torch.arange(len(row), len(row) + 5)[None]
        cos, sin = model.model.rotary_emb(query, at)
        half = torch.cat([-query[..., 4:], query[..., :4]], -1)
    assert torch.allclose(pseudo, query * cos + half * sin, atol=1e-5)


def test_dapq_scores_by_the_attention_of_its_pseudo_queries(model, vocabulary, row, read):
    """Softmax of pseudo-queries over all keys, the end of the prompt included, written out."""
    for look, scores in spied(DapQ(0.4, window=5, kernel=3), model, vocabulary, [row], read):
        keys = look.keys.repeat_interleave(2, 1)

        def mean_attention(query, keys=keys, look=look):
            probs = (query @ keys.transpose(2, 3) * look.rule.scaling).softmax(-1)
            return F.avg_pool1d(by_group(probs.mean(2)[0]), 3, 1, 1)

        pseudo = make_pseudo_queries(look, torch.ones(1, 5, dtype=torch.bool))
        assert torch.allclose(scores[0], mean_attention(pseudo), atol=1e-6)
        assert not torch.allclose(scores[0], mean_attention(look.query[:, :, -5:]), atol=1e-3)


def test_token_sparse_scores_by_the_last_queries_of_every_head(model, vocabulary, row, read, weights):
    """The smoothed mean attention of the window, for each query head; only later layers are sparse."""
    looks = spied(TokenSparseAttention(0.3, kernel=3), model, vocabulary, [row], read)
    assert [look.index for look, _ in looks] == [2, 3]
    expected = F.pad(F.avg_pool1d(weights[2][:, -4:].mean(1)[:, :-4], 3, 1, 1), (0, 4))
    assert torch.allclose(looks[0][1][0], expected, atol=1e-6)


def test_token_sparse_drops_what_covers_least(model, vocabulary, row, read):
    """The published budget: the least attended entries, mean over heads, that cover less than `coverage`, and one."""
    method = TokenSparseAttention(0.5, scope="prompt", window=4, coverage=0.3, layers=(0,))
    look, scores = spied(method, model, vocabulary, [row], read)[0]
    free = look.slots.evictable[0, 0].clone()
    free[-4:] = False
    worth = scores[0].mean(0)[free].sort().values
    gone = int(((worth / worth.sum()).cumsum(0) < 0.3).sum()) + 1
    num = look.slots.evictable[:, 0].sum(1)
    assert gone > 1 and method.count_kept(look, scores, num).tolist() == [int(num) - gone]
    none = replace(method, coverage=0.0)
    assert none.count_kept(look, scores, num).tolist() == [int(num)]
    assert replace(method, least=100).count_kept(look, scores, num).tolist() == [int(num)]


def test_tokenselect_votes_and_drops_nothing(model, vocabulary, row, read):
    """A vote is the softmax of the logits, without the attention's factor, over the candidates alone."""
    looks = spied(TokenSelect(0.3, reuse=2.0), model, vocabulary, [row], read)
    assert len(looks) == 4 * 3 and all(not look.first for look, _ in looks)
    assert [layer.keys.shape[2] for layer in read.cache.layers] == [len(row) + 3] * 4
    look, scores = looks[0]
    free = look.slots.evictable[0, 0]
    logits = (look.query[0, :, 0][:, None] * look.keys.repeat_interleave(2, 1)[0]).sum(-1)  # [H, L]
    expected = torch.zeros(4, len(row) + 1)
    expected[:, free] = logits[:, free].softmax(-1)
    assert torch.allclose(scores[0, 0], expected.sum(0), atol=1e-5)
    assert torch.equal(scores[:, 0], scores[:, 1])  # all heads attend to the same
    assert abs(float(scores[0, 0].sum()) - 4.0) < 1e-4


def test_tokenselect_selects_within_a_long_prompt(make_model, vocabulary, row, read):
    """Chunk by chunk, by the mean of its queries; the chunk itself and the sinks are always there."""
    model = make_model(num_layers=1)
    method = TokenSelect(0.3, scope="prompt", reuse=2.0, sinks=2, chunk=8)
    looks = spied(method, model, vocabulary, [row], read, steps=[])
    assert [len(look.slots) for look, _ in looks] == [*range(len(row) % 8, len(row) + 1, 8)]
    for look, scores in looks[1:]:
        free, num = look.slots.evictable[:, 0].clone(), look.query.shape[2]
        kept = method.count_kept(look, scores, free.sum(1))
        inside = int(free[0, -8:].sum())
        assert int(kept) == round(0.3 * (int(free.sum()) - inside)) + inside
        keep = choose_slots(scores, look.slots, kept, method.count_recent(kept))[0, 0]
        assert num == 8 and keep[-8:].all() and keep[:2].all()
    with torch.inference_mode():
        full = model(torch.tensor([row])).logits[0, -1]
        with TokenSelect(0.999, scope="prompt", chunk=8)(model, vocabulary):  # all entries, but in chunks
            assert torch.allclose(model(torch.tensor([row])).logits[0, -1], full, atol=1e-4)


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
    whole = look.query @ keys.transpose(2, 3) * look.rule.scaling
    assert torch.allclose(parts.sum(2), whole, atol=1e-5)
    pairs = choose_pairs(measure_agreement(look, look.query, 0.3), 2)
    assert pairs.shape == (1, 4, 2)
    every = spied(FASA(0.3, num_pairs=4), model, vocabulary, [row], read)
    assert torch.allclose(every[0][1][0], by_group(whole[0, :, 0]), atol=1e-4)  # with all pairs: the logits themselves
    assert not torch.allclose(scores, every[0][1], atol=1e-3)


def test_fasa_finds_the_pair_that_carries_the_scores(model):
    """Keys that differ in one frequency only: that pair decides, and is found."""
    torch.manual_seed(0)
    query, keys = torch.randn(1, 2, 6, 8), torch.full((1, 1, 20, 8), 0.1)
    keys[..., [2, 6]] = torch.randn(1, 1, 20, 2) * 3  # pair 2 of 4
    free = torch.ones(1, 20, dtype=torch.bool)
    slots = Slots(free, torch.arange(20)[None, None], free[:, None], torch.zeros(1, dtype=torch.int64))
    look = Look(query, keys, keys, slots, SlotLayer(), AttentionRule(0.35), LayerRotation(model.model.rotary_emb), True)
    assert (choose_pairs(measure_agreement(look, query, 0.3), 1) == 2).all()


def test_fasa_is_calibrated_once_for_a_model(model, vocabulary, row, read, prompts):
    """As published: the pairs of a few prompts serve all others, and no prompt costs a search."""
    method = FASA(0.3, num_pairs=2).calibrate(model, vocabulary, prompts[:2])
    assert method.pairs.shape == (4, 4, 2)
    looks = spied(method, model, vocabulary, [row], read)
    assert all("pairs" not in layer.get_state(0).memory for layer in read.cache.layers)
    look, scores = looks[5]  # the second layer's second step
    parts = compute_pair_logits(look, look.query)[0, :, :, 0]  # [H, F, L]
    expected = parts.gather(1, method.pairs[1][..., None].expand(-1, -1, parts.shape[2])).sum(1)
    assert look.index == 1 and torch.allclose(scores[0], by_group(expected), atol=1e-5)
    with pytest.raises(ValueError, match="give at least one"):
        FASA(0.3).calibrate(model, vocabulary, [])


def test_token_sparse_attends_densely_among_the_chosen_only(make_model, vocabulary, row, read):
    """One layer: each head's rows over its own tokens, zeros for the rest; the cache keeps everything."""
    model = make_model(num_layers=1)
    inputs, looks = [], []
    hook = model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with open_spy(TokenSparseAttention(0.3), looks, model, vocabulary):
        read(model, [row])
    hook.remove()
    look, scores = looks[0]
    keep = choose(scores, look.slots, 8, 1)  # [H, L]
    assert not torch.equal(keep[0], keep[1])  # two heads of one group
    out = inputs[0].view(len(row), 4, 8)
    value = read.cache.layers[0].values[0, :, : len(row)]
    for head, stays in enumerate(keep):
        assert (out[~stays, head] == 0).all()
        q, k, v = look.query[:, head, stays], look.keys[:, head // 2, stays], value[None, head // 2, stays]
        dense = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=look.rule.scaling)[0]
        assert torch.allclose(out[stays, head], dense, atol=1e-5)
    assert len(looks) == 1 and read.cache.layers[0].keys.shape[2] == len(row) + 3


def test_rows_keep_their_own_budgets():
    """Ranks are within the entries that may go; rows that keep fewer have padding in front."""
    valid = torch.tensor([[True] * 6, [False] * 2 + [True] * 4])
    free = torch.tensor([[False, True, True, True, True, False], [False, False, False, True, True, False]])[:, None]
    slots = Slots(valid, torch.arange(6).expand(2, 1, 6), free, torch.zeros(2, dtype=torch.int64), plain=False)
    scores = torch.tensor([[[9.0, 1, 4, 3, 2, 9]], [[9.0, 9, 9, 1, 2, 9]]])
    keep = choose_slots(scores, slots, torch.tensor([2, 1]), torch.zeros(2, dtype=torch.int64))
    assert keep[:, 0].int().tolist() == [[1, 0, 1, 1, 0, 1], [0, 0, 1, 0, 1, 1]]
    index, kept = index_slots(keep)
    assert index[0, 0].tolist() == [0, 2, 3, 5] and index[1, 0, 1:].tolist() == [2, 4, 5]
    assert kept[:, 0].int().tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]


def test_a_question_more_on_a_selected_cache(model, vocabulary, row, read):
    """Several tokens at once behind the prompt: causal among themselves, like one by one."""
    for method in (FASA(0.3), TokenSelect(0.3, reuse=2.0)):
        with torch.inference_mode(), method(model, vocabulary):
            read(model, [row], [])
            out = model(torch.tensor([[7, 8]]), **{cache_name(model): read.cache}, use_cache=True)
        assert torch.isfinite(out.logits).all() and read.cache.get_seq_length() == len(row) + 2


@pytest.mark.parametrize(
    "wrong",
    [
        (SnapKV, {"kernel": 4}), (SnapKV, {"window": 2.5}), (SnapKV, {"window": True}), (DapQ, {"window": 0}),
        (FASA, {"num_pairs": 0}), (FASA, {"num_pairs": 1.5}), (H2O, {"recent": -1}), (H2O, {"recent": None}),
        (H2O, {"scope": "all"}), (H2O, {"recent_share": 1.5}), (Keyformer, {"steps": 0}), (Keyformer, {"first": 0.0}),
        (Keyformer, {"last": float("inf")}), (TokenSparseAttention, {"window": 0}),
        (TokenSparseAttention, {"coverage": 2.0}), (TokenSelect, {"chunk": 0}), (TokenSelect, {"reuse": float("nan")}),
    ],
)  # fmt: skip
def test_a_setting_is_refused_when_it_is_made(wrong):
    method, settings = wrong
    with pytest.raises(ValueError, match=next(iter(settings))) as error:
        method(0.5, **settings)
    assert "\n" not in str(error.value)


def test_a_later_picture_is_compressed_too(model, vocabulary, prompt, span, read):
    """Budgets follow what was read: words first, then a picture, then another; the share holds for all."""
    first = prompt([3, 4])
    later = [*span("image", 1), 5, *prompt()[2:]]
    user = vocabulary.get_control_id("<|user|>")
    for method in (H2O(0.5), Keyformer(0.5), SnapKV(0.5), DapQ(0.5), H2O(0.9), H2O(0.25, positions="compacted")):
        cache = DynamicCache(config=model.config)
        with torch.inference_mode(), method(model, vocabulary):
            model(torch.tensor([first]), **{cache_name(model): cache}, use_cache=True)
            for turn in (1, 2):
                model(torch.tensor([[user, *later]]), **{cache_name(model): cache}, use_cache=True)
                held = [int(layer.slots.evictable.sum(-1).min()) for layer in cache.layers]
                assert held == [round(16 * turn * method.keep)] * 4, (method, turn)


def test_dapq_counts_its_window_in_each_row(model, vocabulary, prompt, span, read):
    """A row that is shorter than the window asks with as many pseudo-queries as it has tokens, wherever it stands."""
    rows = [prompt(span("image", 1), [3]), prompt([3] * 30, span("image", 2), [5])]
    with DapQ(0.4, window=40)(model, vocabulary):
        together = read(model, rows)
        for row, found in zip(rows, together, strict=True):
            assert torch.allclose(read(model, [row])[0], found, atol=2e-5)


@pytest.mark.parametrize("method", [FASA(0.3), TokenSelect(0.3), Keyformer(0.3), H2O(0.3), SnapKV(0.3)], ids=str)
def test_a_row_goes_on_as_alone_when_others_leave_the_batch(method, model, vocabulary, prompts, read):
    """What a method remembers of a row stays with it."""
    with torch.inference_mode(), method(model, vocabulary):
        alone = read(model, prompts[:1], [7, 8])[0]
        read(model, prompts[:2], [7])
        read.cache.batch_select_indices(torch.tensor([0]))
        at = torch.tensor([[len(prompts[0]) + 1]])
        held = {cache_name(model): read.cache}
        out = model(torch.tensor([[8]]), position_ids=at, use_cache=True, **held)
    assert torch.allclose(out.logits[0, -1], alone[2], atol=2e-5)

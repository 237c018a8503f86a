"""Methods that evict by rules of their own, against those rules written out; several methods on one cache."""

import pytest
import torch
from transformers import DynamicCache

from tests.compression.conftest import cache_name
from tests.compression.test_kv import spied
from unimodal.compression.kv.adakv import AdaKV
from unimodal.compression.kv.expected_attention import ExpectedAttention
from unimodal.compression.kv.fasa import FASA
from unimodal.compression.kv.h2o import H2O
from unimodal.compression.kv.keydiff import KeyDiff
from unimodal.compression.kv.kivi import KIVI
from unimodal.compression.kv.knorm import Knorm
from unimodal.compression.kv.kvzip import KVzip
from unimodal.compression.kv.lagkv import LagKV
from unimodal.compression.kv.pyramidkv import PyramidKV
from unimodal.compression.kv.snapkv import SnapKV
from unimodal.compression.kv.streaming_llm import StreamingLLM
from unimodal.compression.kv.token_sparse import TokenSparseAttention
from unimodal.compression.kv.tova import TOVA
from unimodal.compression.running.packed import PackedStates
from unimodal.compression.tokens.divprune import DivPrune


@pytest.fixture
def words():
    """A prompt of words alone."""
    return torch.randint(3, 30, (60,), generator=torch.Generator().manual_seed(0)).tolist()


def count_entries(cache):
    """How many entries every head of every layer holds of the first row."""
    return [layer.slots.find_held()[0].sum(-1).tolist() for layer in cache.layers]


def test_streaming_llm_keeps_sinks_and_the_newest_while_words_are_written(model, vocabulary, words, read):
    steps = [7] * 5
    with StreamingLLM(0.5, scope="prompt")(model, vocabulary):
        read(model, [words], steps)
    expected = [0, 1, 2, 3, *range(65 - 26, 65)]
    assert all(layer.slots.positions[0, 0].tolist() == expected for layer in read.cache.layers)
    with StreamingLLM(0.5, scope="prompt", positions="compacted")(model, vocabulary):
        read(model, [words], steps)
    assert read.cache.layers[0].slots.positions[0, 0].tolist() == list(range(30))  # as published: within the cache


def test_tova_scores_by_the_newest_token_over_all_heads(model, vocabulary, words, read):
    look, scores = spied(TOVA(0.5, scope="prompt"), model, vocabulary, [words], read)[0]
    logits = look.query[:, :, -1:] @ look.keys.repeat_interleave(2, 1).transpose(2, 3) * look.rule.scaling
    assert torch.allclose(scores[0], logits.softmax(-1)[0, :, 0].mean(0).expand(2, -1), atol=1e-6)
    assert count_entries(read.cache) == [[30]] * 4 or count_entries(read.cache) == [[30, 30]] * 4


def test_pyramid_budgets_fall_from_layer_to_layer_and_keep_the_mean(make_model, vocabulary, words, read):
    """The mean is the share; the last layer has a twentieth of it, unless the first would need more than there is."""
    model = make_model(num_layers=5)
    with PyramidKV(0.3, scope="prompt", window=2, beta=4)(model, vocabulary):
        read(model, [words], [])
    held = [counts[0] for counts in count_entries(read.cache)]
    first, last = 2 * 18 - 18 / 4, 18 / 4
    assert held == [round(first - layer * (first - last) / 4) for layer in range(5)] and sum(held) == 5 * 18
    with PyramidKV(0.9, scope="prompt", window=2)(model, vocabulary):
        read(model, [words], [])
    held = [counts[0] for counts in count_entries(read.cache)]
    assert held[0] == 58 and held[-1] == 2 * 54 - 58
    with PyramidKV(0.3, scope="prompt", window=10)(model, vocabulary):  # too short for a pyramid
        read(model, [words], [])
    assert [counts[0] for counts in count_entries(read.cache)] == [18] * 5


def test_adakv_heads_divide_one_budget(model, vocabulary, words, read):
    """The authors' rule: of the budget outside the window, a fifth to every head, the rest by a common ranking."""
    looks = spied(AdaKV(0.5, scope="prompt", window=8), model, vocabulary, [words], read, steps=[])
    uneven = 0
    for (_, scores), counts in zip(looks, count_entries(read.cache), strict=True):
        best = scores[0, :, :-8].flatten().argsort(descending=True)[: 2 * 22]
        won = [int((best // 52 == head).sum()) for head in range(2)]
        assert counts == [round(0.8 * n + int(0.2 * 22)) + 8 for n in won]
        uneven += counts[0] != counts[1]
    assert uneven and AdaKV(0.5, floor=1.0)(model, vocabulary)


def test_adakv_hides_what_a_head_does_not_hold(make_model, vocabulary, words, read):
    """One layer: the stock attention with the dropped entries masked for each head, in a step behind the prompt."""
    model = make_model(num_layers=1)
    with torch.inference_mode(), AdaKV(0.3, scope="prompt", window=4)(model, vocabulary):
        found = read(model, [words], [7])[0, 1]
    layer = read.cache.layers[0]
    held = torch.zeros(2, 61, dtype=torch.bool)
    for head in range(2):
        held[head, layer.slots.positions.expand(-1, 2, -1)[0, head][layer.slots.find_held()[0, head]]] = True
    assert held[0].sum() != held[1].sum()
    mask = torch.zeros(1, 4, 61, 61).masked_fill(torch.ones(61, 61, dtype=torch.bool).triu(1), -torch.inf)
    mask[0, :, -1] = torch.zeros(4, 61).masked_fill(~held.repeat_interleave(2, 0), -torch.inf)
    with torch.inference_mode():
        expected = model(torch.tensor([[*words, 7]]), attention_mask=mask).logits[0, -1]
    assert torch.allclose(found, expected, atol=1e-5)


def test_scores_that_need_keys_and_values_alone(model, vocabulary, words, read):
    look, scores = spied(KeyDiff(0.5, scope="prompt"), model, vocabulary, [words], read)[0]
    unit = look.keys / look.keys.norm(dim=-1, keepdim=True)
    mean = unit.mean(2, keepdim=True)
    assert torch.allclose(scores, -(unit * mean).sum(-1) / mean.norm(dim=-1), atol=1e-5)
    look, scores = spied(Knorm(0.5, scope="prompt", skip=1), model, vocabulary, [words], read)[0]
    assert look.index == 1 and torch.allclose(scores, -look.keys.square().sum(-1).sqrt(), atol=1e-4)
    look, scores = spied(LagKV(0.5, scope="prompt", sinks=2, lag=16), model, vocabulary, [words], read)[0]
    ranks = []
    for start in (2, 18):  # whole pieces 2-17, 18-33 and 34-49; the last, and what is behind it, stays
        spread = 0
        for states in (look.keys[0], look.values[0]):
            piece, after = states[:, start : start + 16], states[:, start + 16 : start + 32]
            low, high = after.min(1, keepdim=True).values, after.max(1, keepdim=True).values
            spread = spread + ((piece - low) / (high - low)).std(-1).softmax(-1)
        ranks.append(spread.argsort(-1).argsort(-1) / 16)
    assert torch.allclose(scores[0, :, 2:34], torch.cat(ranks, 1)) and (scores[0, :, 34:] == 1).all()
    assert (scores[0, :, :2] > 1).all()


def test_expected_attention_is_the_mean_of_an_exponential(model, vocabulary, words, read):
    """In closed form what drawing queries finds; one coming position, so that the mean rotation is a rotation."""
    method = ExpectedAttention(0.5, scope="prompt", future=1, sinks=0, norms=False)
    look, scores = spied(method, model, vocabulary, [words], read)[0]
    back = look.rotation.rotate_by(look.query, -torch.arange(60)[None, None])[0]  # [H, Q, W]
    torch.manual_seed(0)
    mean, cov = back.mean(1), torch.stack([head.T.cov(correction=0) for head in back])
    draws = torch.distributions.MultivariateNormal(mean, cov + 1e-6 * torch.eye(8)).sample((20000,)).transpose(0, 1)
    ahead = look.rotation.rotate_by(draws[None], torch.full((1, 1, 20000), 60))[0]
    keys = look.keys[0].repeat_interleave(2, 0)
    drawn = (ahead @ keys.transpose(1, 2) * look.rule.scaling).exp().mean(1)  # [H, L]
    expected = (drawn / drawn.sum(1, keepdim=True)).view(2, 2, -1).mean(1)
    assert torch.allclose(scores[0], expected, rtol=0.15, atol=2e-4)


def test_observed_attention_is_a_mean_over_the_queries_that_see_an_entry(model, vocabulary, words, read):
    whole = spied(H2O(0.5, scope="prompt"), model, vocabulary, [words], read)[0][1]
    mean = spied(H2O(0.5, scope="prompt", averages=True), model, vocabulary, [words], read)[0][1]
    assert torch.allclose(mean, whole / torch.arange(60, 0, -1), atol=1e-6)


def test_rows_of_one_length_may_keep_different_numbers(model, vocabulary, prompt, span, read):
    """No padding in the prompt, but in the cache: it is hidden."""
    rows = [prompt(span("image", 1), [5]), prompt([4] * 18, [5])]
    assert len(rows[0]) == len(rows[1])
    with SnapKV(0.4)(model, vocabulary):
        together = read(model, rows)
        for row, found in zip(rows, together, strict=True):
            assert torch.allclose(read(model, [row])[0], found, atol=2e-5)


def test_several_methods_evict_in_their_order(model, vocabulary, prompts, words, read):
    """The second keeps its share of what the first leaves, and chooses among that."""
    with SnapKV(0.5, scope="prompt", window=8)(model, vocabulary):
        read(model, [words], [])
        first = [layer.slots.positions[0] for layer in read.cache.layers]
        with Knorm(0.5, scope="prompt")(model, vocabulary):
            read(model, [words], [])
    for before, layer in zip(first, read.cache.layers, strict=True):
        for head in range(2):
            kept = layer.slots.positions[0, head].tolist()
            assert len(kept) == 15 and set(kept) <= set(before[head].tolist())
    pairs = [
        (H2O(0.5), TOVA(0.5)), (AdaKV(0.6), StreamingLLM(0.5)), (KeyDiff(0.6), FASA(0.3)),
        (TokenSparseAttention(0.4), SnapKV(0.4)), (DivPrune(0.5), AdaKV(0.4)), (PyramidKV(0.5), AdaKV(0.5)),
    ]  # fmt: skip
    for outer, inner in pairs:
        with outer(model, vocabulary), inner(model, vocabulary):
            together = read(model, prompts)
            for row, found in zip(prompts[:2], together, strict=False):
                assert torch.allclose(read(model, [row])[0], found, atol=2e-5), (outer, inner)


def test_methods_that_contradict_each_other_are_refused_in_one_line(model, vocabulary):
    for outer, inner, match in (
        (SnapKV(0.5), H2O(0.5, scope="prompt"), "SnapKV and H2O differ in scope, 'media' and 'prompt'"),
        (FASA(0.5), TokenSparseAttention(0.5), "both choose what to attend to"),
        (SnapKV(0.5), H2O(0.5, positions="compacted"), "differ in positions"),
        (KIVI(0.5), KIVI(0.2), "both pack entries"),
        (KVzip(0.5), SnapKV(0.5), "KVzip and SnapKV cannot both evict"),
        (KIVI(0.5), SnapKV(0.5, positions="compacted"), "packed keys cannot be moved"),
    ):
        with (
            pytest.raises(ValueError, match=match) as error,
            outer(model, vocabulary),
            inner(model, vocabulary),
        ):
            pass
        assert "\n" not in str(error.value)


def test_compacted_heads_that_keep_less_close_up_to_the_end(model, vocabulary, words):
    """Heads of different numbers: every head's positions are without gaps and end before the next token's."""
    cache = DynamicCache(config=model.config)
    method = AdaKV(0.3, scope="prompt", window=4, positions="compacted")
    with torch.inference_mode(), method(model, vocabulary):
        model(torch.tensor([words]), **{cache_name(model): cache}, use_cache=True)
        model(torch.tensor([[7]]), **{cache_name(model): cache}, use_cache=True)
    for layer in cache.layers:
        positions, held = layer.slots.positions[0], layer.slots.find_held()[0].expand(2, -1)
        for own, stays in zip(positions, held, strict=True):
            assert (own[stays].diff() == 1).all() and own[-1] == positions[0, -1]


def test_the_newest_entries_are_counted_without_the_padding_between_turns(model, vocabulary, prompt):
    """A short turn beside a long one is padded in the middle of the cache: that is no entry."""
    first, later = [prompt([4] * 20), prompt([5] * 20)], [[7, 8, 9], [5] * 20]
    ids = torch.tensor([[0] * 17 + later[0], later[1]])
    with torch.inference_mode(), SnapKV(0.3, scope="prompt", window=16)(model, vocabulary):
        found = []
        for rows in ((0, 1), (0,)):
            cache = DynamicCache(config=model.config)
            settings = {cache_name(model): cache, "use_cache": True}
            model(torch.tensor([first[row] for row in rows]), **settings)
            new, length = (ids, 20) if len(rows) == 2 else (torch.tensor([later[0]]), 3)
            mask = torch.ones(len(rows), len(first[0]) + length)
            mask[0, len(first[0]) : -3] = 0
            at = (mask.cumsum(1) - 1).long()[:, -length:]
            model(new, attention_mask=mask, position_ids=at, **settings)
            step = torch.tensor([[6]] * len(rows))
            at = at[:, -1:] + 1
            found.append(model(step, position_ids=at, **settings).logits[0])
    assert torch.allclose(*found, atol=2e-5)


def test_a_quantized_cache_is_read_as_it_is_stored(model, vocabulary, words, read):
    """Keys by channel over groups of entries, values by entry over groups of channels; the newest stay exact."""
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(torch.tensor([words]), **{cache_name(model): cache}, use_cache=True)
        with KIVI(0.25, scope="prompt", group=4, recent=10)(model, vocabulary):
            read(model, [words], [])
    assert KIVI(0.5).packing[0] == 8 and KIVI(0.49).packing[0] == 4 and KIVI(0.1).packing[0] == 2

    def round_group(x, dim):
        low, high = x.amin(dim, keepdim=True), x.amax(dim, keepdim=True)
        return ((x - low) / (high - low) * 15).round() / 15 * (high - low) + low

    layer, whole = read.cache.layers[0], cache.layers[0]
    keys, values = layer.read()
    assert torch.equal(keys[:, :, 50:], whole.keys[:, :, 50:]) and torch.equal(
        values[:, :, 50:], whole.values[:, :, 50:]
    )
    groups = whole.keys[:, :, :48].unflatten(2, (12, 4))
    assert torch.allclose(keys[:, :, :48], round_group(groups, 3).flatten(2, 3), atol=1e-5)
    rounded = round_group(whole.values[:, :, :50].unflatten(-1, (2, 4)), -1).flatten(-2)
    assert torch.allclose(values[:, :, :50], rounded, atol=1e-5)


def test_packed_entries_keep_their_codes(model, vocabulary, words):
    """Beside eviction at every step, through selected rows and cropped tokens, nothing is packed again."""
    torch.manual_seed(0)
    states = [torch.randn(2, 2, 40, 8) for _ in range(2)]
    packed = PackedStates.begin(*states, bits=2, size=4).pack(torch.arange(40).expand(2, 2, -1) < 33, 4)
    before = packed.unpack()
    assert torch.equal(before[0][:, :, 33:], states[0][:, :, 33:])
    index = torch.stack([torch.randperm(40)[:20].sort().values for _ in range(4)]).view(2, 2, 20)
    valid = torch.ones_like(index, dtype=torch.bool)
    valid[0, 1, :3] = False
    after = packed.append(*(x[:, :, :2] for x in states)).take(index, valid).select_rows(torch.tensor([1, 0])).unpack()
    wide = index[..., None].expand(-1, -1, -1, 8)
    for old, new in zip(before, after, strict=True):
        expected = old.gather(2, wide) * valid[..., None]
        assert torch.equal(new, expected.flip(0))
    wide = [torch.randn(1, 2, 512, 64).half() for _ in range(2)]
    whole = sum(x.numel() * 2 for x in wide)
    small = PackedStates.begin(*wide, bits=2, size=32).pack(torch.ones(1, 2, 512, dtype=torch.bool), 32)
    assert whole > 4 * small.count_bytes()


def test_what_evicts_and_what_packs_go_together(model, vocabulary, prompts, read):
    for scope in ("media", "prompt"):
        with H2O(0.5, scope=scope)(model, vocabulary), KIVI(0.25, group=4, scope=scope)(model, vocabulary):
            together = read(model, prompts)
            for row, found in zip(prompts, together, strict=True):
                assert torch.allclose(read(model, [row])[0], found, atol=2e-4)


def test_kvzip_keeps_what_a_repetition_attends_to(model, vocabulary, words, read):
    """The stock attention of prompt, request and prompt again; all layers share one budget; nothing of it stays."""
    with KVzip(0.4, scope="prompt", asked=(7, 8), sinks=2)(model, vocabulary):
        read(model, [words], [])
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        out = model(torch.tensor([[*words, 7, 8, *words]]), output_attentions=True)
    model.set_attn_implementation("sdpa")
    most = torch.stack([weights[0, :, 60:, :60].amax(1).view(2, 2, -1).amax(1) for weights in out.attentions])
    most[..., :2] = 2.0
    expected = torch.zeros(most.numel(), dtype=torch.bool)
    expected[most.flatten().argsort(descending=True)[: round(0.4 * 60 * 2 * 4)]] = True
    for layer, kept in zip(read.cache.layers, expected.view(4, 2, 60), strict=True):
        positions, held = layer.slots.positions.expand(-1, 2, -1)[0], layer.slots.find_held().expand(-1, 2, -1)[0]
        for own, stays, wanted in zip(positions, held, kept, strict=True):
            assert own[stays].tolist() == wanted.nonzero()[:, 0].tolist()
    assert read.cache.get_seq_length() == 60 and len({tuple(counts) for counts in count_entries(read.cache)}) > 1


def test_kvzip_scores_a_later_turn_by_its_own_repetition(model, vocabulary, prompt, span):
    cache, user = DynamicCache(config=model.config), vocabulary.get_control_id("<|user|>")
    settings = {cache_name(model): cache, "use_cache": True}
    with torch.inference_mode(), KVzip(0.5)(model, vocabulary):
        model(torch.tensor([prompt(span("image", 1))]), **settings)
        before = [layer.get_state(0).score for layer in cache.layers]
        model(torch.tensor([[7]]), **settings)
        model(torch.tensor([[user, *span("image", 2), 5]]), **settings)
    held = sum(int((layer.slots.evictable & layer.slots.find_held()).sum()) for layer in cache.layers)
    assert held == round(0.5 * 32 * 2 * 4) and all(len(x) == 1 for x in before)
    for old, layer in zip(before, cache.layers, strict=True):
        kept = layer.get_state(0).score[0]
        assert set(kept[0].tolist()) & set(old[0, 0].tolist())  # those of the first turn that are left

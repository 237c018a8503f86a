"""Summed rows in and a small decoder out: for every base the explicit sum, and each code from those before it alone."""

import pytest
import torch
from torch.nn import functional as F

from tests.campaigns import is_study
from tests.scoring import score_drawn
from tests.tiny_bases import BASES, PADDED
from tests.tiny_bases import make_base as make_tiny
from unimodal.generation.engine import Engine
from unimodal.generation.request import GenerationConfig
from unimodal.generation.sampling import GREEDY
from unimodal.model.adapter import load_adapter, save_adapter
from unimodal.model.base import LoadedBase
from unimodal.model.build import build_model
from unimodal.model.depth_decoder import (
    DEPTH_FILE,
    DepthDecoder,
    DepthPass,
    DepthSettings,
    attach_depth_decoder,
    embed_positions,
    find_depth_decoder,
)
from unimodal.model.logits import read_logit_rule
from unimodal.model.lora import LoraSettings
from unimodal.objectives.next_token import LossConfig
from unimodal.objectives.packed import PackedLoss
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary


def make_base(kind):
    return LoadedBase(kind, make_tiny(kind, None), {})


#: one of each kind: rows scaled in the table or behind it, logits scaled or capped, places learnt, a head with a bias
KINDS = ("qwen3", "gemma2", "granite", "cohere", "gpt2", "phi", "opt")
SMALL = DepthSettings(num_layers=2, width=16)


def make_vocabulary(text_size=PADDED):
    """Three codes a step for pictures, two for sounds, one for clips."""
    blocks = [
        *(Block(name="image", modality="image", group=g, size=9, layout="summed") for g in range(3)),
        *(Block(name="audio", modality="audio", group=g, size=6, layout="summed") for g in range(2)),
        Block(name="video", modality="video", size=5),
    ]
    layouts = [
        SpanLayout("image", [Segment("image", 4)]),
        SpanLayout("audio", [Segment("audio")]),
        SpanLayout("video", [Segment("video", 3)]),
    ]
    return Vocabulary.build(text_size, blocks, layouts)


@torch.no_grad()
def wake(depth, seed=5):
    """As after some training: nothing of it is zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in depth.parameters():
        parameter += torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.dim() > 1 else 0.1)


def make_rows(vocabulary, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [
        3, 7,
        *vocabulary.encode_span("image", torch.randint(0, 9, (4, 3), generator=g)),
        *vocabulary.encode_span("audio", torch.randint(0, 6, (3, 2), generator=g)),
        *vocabulary.encode_span("video", torch.randint(0, 5, (3,), generator=g)),
        5,
    ]  # fmt: skip


@torch.no_grad()
def explain(model, vocabulary, rows):
    """The logits [N, V] before each row but the first, from the definition: explicit sums, one position at a time."""
    table, head, depth = model.get_input_embeddings(), model.get_output_embeddings(), find_depth_decoder(model)
    rule = read_logit_rule(model)
    positions, _ = vocabulary.positions.fold(rows)
    tuples = [one if isinstance(one, tuple) else (one,) for one in positions]
    summed = torch.stack([torch.stack([table(torch.tensor([[row]]))[0, 0] for row in one]).sum(0) for one in tuples])
    hidden = model.get_decoder()(inputs_embeds=summed[None], use_cache=False).last_hidden_state[0]
    states = []
    for before, one in zip(hidden, tuples[1:], strict=False):
        states.append(before)
        for known in range(1, len(one)):
            codes = torch.stack([table(torch.tensor([[row]]))[0, 0] for row in one[:known]])
            states.append(depth(before[None], codes[None])[0, -1])
    return rule.apply(head(torch.stack(states)))


@pytest.mark.sweep
@pytest.mark.parametrize("kind", BASES if is_study() else KINDS)
def test_every_base_reads_the_sum_and_learns_each_code(kind):
    vocabulary = make_vocabulary()
    model = build_model(make_base(kind), vocabulary, LoraSettings(rank=2), depth=SMALL).eval()
    wake(find_depth_decoder(model))
    rows = make_rows(vocabulary)
    logits = explain(model, vocabulary, rows)
    expected = F.cross_entropy(logits, torch.tensor(rows[1:]), reduction="sum")
    first, further = vocabulary.positions.fold_array(torch.tensor(rows).numpy())
    ids, further = torch.tensor(rows)[torch.from_numpy(first)][None], torch.from_numpy(further)[None]
    places = torch.arange(ids.shape[1])[None]
    with torch.no_grad():
        total, found = PackedLoss(model, vocabulary, LossConfig(softmax="joint"))(ids, ids, places, further)
        assert found["weight"] == len(rows) - 1
        torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-4)
        # two documents in one row and padding behind: each as alone
        pair = [torch.cat([x, x, x[:, :2]], 1) for x in (ids, places, further)]
        labels = pair[0].clone()
        labels[:, -2:] = -100
        twice, _ = PackedLoss(model, vocabulary, LossConfig(softmax="joint"))(pair[0], labels, pair[1], pair[2])
        torch.testing.assert_close(twice, 2 * expected, rtol=1e-4, atol=1e-4)
    # the engine's cache, steps and depth passes give the same
    engine = Engine(model, vocabulary)
    [score] = engine.compute_log_likelihood([rows[:4]], [rows[4:]])
    want = score_drawn(logits[3:], vocabulary, rows[:4], rows[4:]).sum()
    torch.testing.assert_close(torch.tensor(score), want, rtol=1e-4, atol=1e-4)
    config = GenerationConfig(max_new_tokens=7, force="image", sampling={"image": GREEDY})
    [answer] = engine.generate([rows[:2]], config)
    scores = explain(model, vocabulary, [*rows[:2], *answer])[1:]
    for at, row in enumerate(answer[1:13], start=1):
        block = vocabulary.find_block(row)
        assert block.group == (at - 1) % 3 and int(scores[at][list(block.rows)].argmax()) == row - block.start


def test_a_table_that_scales_scales_the_sum():
    model = build_model(make_base("gemma"), make_vocabulary(), depth=SMALL)
    table, ids = model.get_input_embeddings(), torch.tensor([[[60, 70, 80], [3, -1, -1]]])
    raw = torch.cat([table.base.weight, table.new_rows])
    found = embed_positions(table, ids)[0]
    torch.testing.assert_close(found[0], raw[[60, 70, 80]].sum(0) * table.scale, rtol=0, atol=1e-4)
    torch.testing.assert_close(found[1], raw[3] * table.scale, rtol=0, atol=1e-5)
    assert table.scale > 5


def test_all_codes_at_once_are_those_one_at_a_time_and_a_new_one_changes_nothing():
    depth = DepthDecoder(24, 5, SMALL)
    states, codes = torch.randn(6, 24), torch.randn(6, 4, 24)
    assert torch.equal(depth(states, codes), states[:, None].expand(-1, 4, -1)), "a tune starts from parallel heads"
    wake(depth)
    whole = depth(states, codes)
    steps = DepthPass(depth, states)
    torch.testing.assert_close(torch.cat([steps.read(codes[:, k : k + 1]) for k in range(4)], 1), whole)
    begun = DepthPass(depth, states)  # a prompt that ends within a position
    found = torch.cat([begun.read(codes[:, :3]), begun.read(codes[:, 3:])], 1)
    torch.testing.assert_close(found, whole)
    torch.testing.assert_close(depth(states[2:3], codes[2:3]), whole[2:3], msg="alone")
    changed = codes.clone()
    changed[:, 2] += 1
    assert torch.equal(depth(states, changed)[:, :2], whole[:, :2]) and not torch.equal(depth(states, changed), whole)


def test_gradients_reach_everything_and_a_batch_without_codes_goes_too():
    vocabulary = make_vocabulary()
    model = build_model(make_base("llama"), vocabulary, LoraSettings(rank=2), depth=SMALL)
    depth = find_depth_decoder(model)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in depth.parameters())
    assert not any("lora" in name for name, _ in depth.named_modules())
    wake(depth)
    module = PackedLoss(model, vocabulary)
    first, further = vocabulary.positions.fold_array(torch.tensor(make_rows(vocabulary)).numpy())
    ids = torch.tensor(make_rows(vocabulary))[torch.from_numpy(first)][None]
    total, found = module(ids, ids, torch.arange(ids.shape[1])[None], torch.from_numpy(further)[None])
    total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in depth.parameters())
    assert {name: count for name, (_, count) in found["blocks"].items()} == {
        "text": 7,
        "image": 4,
        "image.1": 4,
        "image.2": 4,
        "audio": 4,
        "audio.1": 3,
        "video": 3,
    }  # fmt: skip - the sound's end is learnt beside its codes
    words = torch.tensor([[3, 4, 5]])
    total, _ = module(words, words, torch.arange(3)[None], torch.full((1, 3, 2), -1))
    model.zero_grad()
    total.backward()
    assert all(p.grad is not None for p in depth.parameters()), "DDP waits for them"


def test_an_adapter_keeps_it_and_a_file_that_does_not_fit_is_named(tmp_path):
    vocabulary = make_vocabulary()
    model = build_model(make_base("qwen3"), vocabulary, LoraSettings(rank=2), depth=SMALL)
    wake(find_depth_decoder(model))
    save_adapter(tmp_path / "out", model, "qwen3", vocabulary)
    again, _ = load_adapter(tmp_path / "out", make_base("qwen3"))
    before, after = find_depth_decoder(model), find_depth_decoder(again)
    for name, parameter in before.named_parameters():
        assert torch.equal(after.get_parameter(name), parameter), name
    path = tmp_path / "out" / DEPTH_FILE
    fresh = make_base("qwen3").model
    DepthDecoder(40, 3, SMALL).save(tmp_path / "out")
    with pytest.raises(
        ValueError, match="3 codes a position for a decoder of width 40, but this one has 3 and width 32"
    ):
        attach_depth_decoder(fresh, tmp_path / "out", vocabulary)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="is damaged"):
        attach_depth_decoder(fresh, tmp_path / "out", vocabulary)
    path.unlink()
    with pytest.raises(ValueError, match=f"{DEPTH_FILE} is missing: it writes the codes of summed positions"):
        load_adapter(tmp_path / "out", make_base("qwen3"))

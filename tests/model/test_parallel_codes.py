"""A large code as several sub-codes at one position, each with rows and a head of its own, drawn apart (ELM)."""

import pytest
import torch
import torch.nn.functional as F

from tests.tiny_bases import PADDED, make_base
from unimodal.generation.engine import Engine
from unimodal.generation.request import GenerationConfig
from unimodal.generation.sampling import GREEDY
from unimodal.model.adapter import load_adapter, save_adapter
from unimodal.model.base import LoadedBase
from unimodal.model.build import build_model
from unimodal.model.depth_decoder import DEPTH_FILE, DepthSettings, attach_depth_decoder, find_depth_decoder
from unimodal.model.rows import get_new_rows
from unimodal.objectives.packed import PackedLoss
from unimodal.tokenizers.parts.quantizers import LookupFreeQuantizer
from unimodal.tokenizers.parts.split_ids import join_ids, split_ids
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary

PARALLEL = DepthSettings(kind="parallel")
BITS, COUNT = 3, 5  # of a sub-code; positions of a picture


@pytest.fixture(scope="module")
def vocabulary():
    blocks = [Block(name="image", modality="image", group=g, size=2**BITS, layout="summed") for g in range(2)]
    return Vocabulary.build(PADDED, blocks, [SpanLayout("image", [Segment("image", COUNT)])])


@pytest.fixture
def model(vocabulary):
    base = LoadedBase("qwen3", make_base("qwen3", False), {})
    return build_model(base, vocabulary, depth=PARALLEL).eval()


@pytest.fixture
def elm(model, vocabulary):
    """ELM's parts by its paper: a table and a head for each sub-code, and one matrix for the joined vectors; the
    model's rows hold the same."""
    g = torch.Generator().manual_seed(0)
    tables, heads = (torch.randn(2, 2**BITS, width, generator=g) * 0.3 for width in (6, 32))
    matrix = torch.randn(32, 2 * 6, generator=g) * 0.3
    rows = get_new_rows(model)
    with torch.no_grad():
        for group, block in enumerate(vocabulary.blocks):
            place = slice(block.start - PADDED, block.start - PADDED + block.size)
            rows["input"][place] = tables[group] @ matrix[:, 6 * group : 6 * group + 6].T
            rows["output"][place] = heads[group]
    return tables, heads, matrix


def make_codes(seed=3):
    """A picture of codes of 2·BITS bits, and their sub-codes [COUNT, 2]."""
    codes = torch.randint(0, 4**BITS, (COUNT,), generator=torch.Generator().manual_seed(seed))
    return codes, split_ids(codes, (2**BITS, 2**BITS))


@torch.no_grad()
def compute_elm_logits(model, elm, prompt, parts):
    """Sub-codes [n, 2] behind a prompt → the logits [n, 2, 2^BITS] of each, by the paper's forward."""
    tables, heads, matrix = elm
    joined = torch.cat([tables[0][parts[:, 0]], tables[1][parts[:, 1]]], 1) @ matrix.T
    table = model.get_input_embeddings()
    embedded = torch.cat([table(torch.tensor(prompt)), joined])[None]
    states = model.get_decoder()(inputs_embeds=embedded, use_cache=False).last_hidden_state[0]
    states = states[len(prompt) - 1 : len(prompt) - 1 + max(1, len(parts))]
    return torch.stack([states @ head.T for head in heads], 1)


def test_the_loss_is_elms(model, vocabulary, elm):
    codes, parts = make_codes()
    assert torch.equal(join_ids(parts, (2**BITS, 2**BITS)), codes)
    prompt = [3, 7, vocabulary.get_start_id("image")]
    logits = compute_elm_logits(model, elm, prompt, parts)
    expected = F.cross_entropy(logits.flatten(0, 1), parts.flatten(), reduction="sum")
    rows = [3, 7, *vocabulary.encode_span("image", parts)]
    first, further = vocabulary.positions.fold_array(torch.tensor(rows).numpy())
    ids, further = torch.tensor(rows)[torch.from_numpy(first)][None], torch.from_numpy(further)[None]
    labels = ids.clone()
    labels[:, :3] = -100
    labels[:, -1] = -100
    total, found = PackedLoss(model, vocabulary)(ids, labels, torch.arange(ids.shape[1])[None], further)
    assert found["weight"] == 2 * COUNT
    torch.testing.assert_close(total.detach(), expected, rtol=1e-4, atol=1e-4)
    total.backward()
    assert all(rows.grad.abs().sum() > 0 for rows in get_new_rows(model).values())
    assert not list(find_depth_decoder(model).parameters())  # nothing but rows


def test_sub_codes_are_drawn_from_one_state_apart_from_each_other(model, vocabulary, elm):
    engine, prompt = Engine(model, vocabulary), [3, 7, vocabulary.get_start_id("image")]
    config = GenerationConfig(max_new_tokens=COUNT + 2, sampling={"image": GREEDY}, allow=("image",))
    [answer] = engine.generate([prompt], config)
    _, found = vocabulary.decode_span([prompt[-1], *answer[: answer.index(vocabulary.get_end_id("image")) + 1]])
    written = torch.zeros(0, 2, dtype=torch.int64)
    for position in range(COUNT):
        logits = compute_elm_logits(model, elm, prompt, written)[-1:] if position == 0 else None
        if logits is None:
            logits = compute_elm_logits(model, elm, [*prompt], torch.cat([written, written[-1:]]))[-1:]
        written = torch.cat([written, logits.argmax(-1)])
    assert torch.equal(torch.as_tensor(found), written)
    drawn = engine.generate(
        [prompt] * 200,
        [GenerationConfig(max_new_tokens=COUNT + 2, allow=("image",), seed=s, pause=2) for s in range(200)],
    )  # noqa: E501
    starts = [block.start for block in vocabulary.blocks]
    pairs = torch.tensor(drawn) - torch.tensor(starts)
    p = compute_elm_logits(model, elm, prompt, torch.zeros(0, 2, dtype=torch.int64))[0].softmax(-1)
    expected = 200 * (p[0][:, None] * p[1]).flatten()  # a pair is as likely as its parts together
    counts = torch.bincount(pairs[:, 0] * 2**BITS + pairs[:, 1], minlength=4**BITS).double()
    likely = expected > 4
    assert likely.sum() > 5
    assert float(((counts - expected) ** 2 / expected)[likely].sum()) < 3 * int(likely.sum()) + 12


def test_groups_of_bits_are_the_sub_codes_of_one_large_code():
    """A codebook of 2^8 and one of 2^4 · 2^4: the same vectors, and the large code is its parts put together."""
    z = torch.randn(2, 7, 8, generator=torch.Generator().manual_seed(0))
    large, small = (LookupFreeQuantizer(bits).eval()(z) for bits in ((8,), (4, 4)))
    assert torch.equal(large.values, small.values)
    assert torch.equal(join_ids(small.ids, (16, 16)), large.ids[..., 0])
    assert torch.equal(split_ids(large.ids[..., 0], (16, 16)), small.ids)


def test_the_file_comes_back_and_settings_that_do_not_go_together_are_one_line(model, vocabulary, tmp_path):
    save_adapter(tmp_path, model, "qwen3", vocabulary)
    back, _ = load_adapter(tmp_path, LoadedBase("qwen3", make_base("qwen3", False), {}))
    depth = find_depth_decoder(back)
    assert depth.settings == PARALLEL and depth.num_codes == 2
    states = torch.randn(3, 32)
    assert torch.equal(depth(states, torch.randn(3, 1, 32)), states[:, None])
    other = make_base("qwen3", False, hidden_size=16)
    with pytest.raises(ValueError, match="for a decoder of width 32"):
        attach_depth_decoder(other, tmp_path, vocabulary)
    (tmp_path / DEPTH_FILE).write_bytes(b"")
    with pytest.raises(ValueError, match="is damaged"):
        attach_depth_decoder(other, tmp_path, vocabulary)
    for wrong in ({"num_layers": 2}, {"width": 16}):
        with pytest.raises(ValueError, match="has no layers and no width"):
            DepthSettings(kind="parallel", **wrong)

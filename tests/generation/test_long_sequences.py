"""Long sequences: nothing is copied at every token, and what is read in pieces is what is read at once."""

import pytest
import torch

from unimodal.generation.decoders import lean_decoder, lean_layers
from unimodal.generation.decoders.lean_decoder import LeanDecoder
from unimodal.generation.decoders.lean_layers import attend
from unimodal.generation.decoders.packed_decoder import PackedDecoder
from unimodal.generation.decoders.reference_cache import RoomyLayer
from unimodal.generation.decoders.reference_decoder import ReferenceDecoder
from unimodal.generation.engine import Engine


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("num_new", [1, 5, lean_layers._FEW + 1])
@pytest.mark.parametrize("masked", [True, False])
def test_grouped_heads_attend_as_repeated_ones(kv_heads, num_new, masked):
    """The kernel is given a group's heads as queries; the definition repeats the keys."""
    generator = torch.Generator().manual_seed(0)
    length = 140
    if not masked and num_new > 1:
        length = num_new  # without a mask it is a prompt from its start
    q = torch.randn(2, 6, num_new, 8, generator=generator)
    k, v = (torch.randn(2, kv_heads, length, 8, generator=generator) for _ in range(2))
    bias = None
    if masked:
        hidden = torch.rand(2, 1, num_new, length, generator=generator) < 0.5
        hidden[..., 0] = False
        bias = torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)
    keys, values = (x.repeat_interleave(6 // kv_heads, 1) for x in (k, v))
    scores = q @ keys.transpose(2, 3) * 0.3
    if masked:
        scores = scores + bias
    elif num_new > 1:
        scores = scores.masked_fill(torch.ones(num_new, length, dtype=torch.bool).triu(1), -torch.inf)
    expected = (scores.softmax(-1) @ values).transpose(1, 2).reshape(2, num_new, -1)
    torch.testing.assert_close(attend(q, k, v, bias, 0.3), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [LeanDecoder, PackedDecoder])
@torch.inference_mode()
def test_a_padded_prompt_read_in_pieces_is_the_prompt(model, kind, monkeypatch):
    prompts = [list(range(3, 25)), [4, 5], list(range(2, 15))]
    whole, pieces = kind(model), kind(model)
    expected = [whole.prefill(prompts, 0, 40)]
    monkeypatch.setattr(lean_decoder, "_PIECE", 4)
    calls = []
    run = pieces._run
    monkeypatch.setattr(
        pieces, "_run", lambda streams, ids, *more: (calls.append(ids.shape), run(streams, ids, *more))[1]
    )
    found = [pieces.prefill(prompts, 0, 40)]
    assert calls == [(3, 4), (2, 4), (2, 4), (2, 4), (1, 4), (1, 2)]  # who is at an end is read no further
    monkeypatch.undo()
    token = torch.tensor([[5], [6], [7]])
    expected.append(whole.step(token))
    found.append(pieces.step(token))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", ["none", "select", "cut"])
def test_a_roomy_layer_holds_what_a_growing_one_would_and_stays_in_place(change):
    generator = torch.Generator().manual_seed(0)
    layer, held = RoomyLayer(12), [torch.zeros(3, 2, 0, 4)] * 2
    places = set()
    for step, num_new in enumerate([5, 1, 1, 2, 1, 1, 1, 3]):  # 15 in all: more than it was told
        new = [torch.randn(len(held[0]), 2, num_new, 4, generator=generator) for _ in range(2)]
        held = [torch.cat([old, states], 2) for old, states in zip(held, new, strict=True)]
        for found, expected in zip(layer.update(*new), held, strict=True):
            assert torch.equal(found, expected)
        assert layer.get_seq_length() == held[0].shape[2]
        places.add(layer.keys.data_ptr())
        if step == 2 and change == "select":
            layer.batch_select_indices(torch.tensor([2, 0]))
            held = [old[[2, 0]] for old in held]
        if step == 2 and change == "cut":
            layer.crop(-2)
            held = [old[:, :, :-2] for old in held]
    assert len(places) == 2 if change == "none" else len(places) > 1  # one more room, for what it was not told


@torch.inference_mode()
def test_the_reference_decoder_copies_no_cache(model, monkeypatch):
    """A step writes its own token: the keys stay where they are from the prompt to the last token."""
    decoder = ReferenceDecoder(model)
    decoder.prefill([[3, 4, 5], [6]], 0, 30)
    places = [layer.keys.data_ptr() for layer in decoder.cache.layers]
    for _ in range(27):
        decoder.step(torch.tensor([[5], [6]]))
    assert [layer.keys.data_ptr() for layer in decoder.cache.layers] == places
    assert decoder.cache.layers[0].keys.shape[2] == 30


def test_the_operations_of_a_step_do_not_depend_on_how_much_was_read(make_model, vocabulary, ask):
    """Counted with the profiler: late in a sequence a token takes the same operations as early, none of them a copy of
    the cache (`cat`, `repeat_interleave`, `index_select`, `clone` of tensors that grow)."""
    from torch.profiler import ProfilerActivity, profile

    model = make_model()
    engine = Engine(model, vocabulary)
    counts = []
    for length in (10, 90):
        with torch.inference_mode():
            engine.refresh_head()
            decoder = engine.decoder
            decoder.prefill([[3] * length, [4] * (length - 3)], engine.pad_id, 120)
            decoder.step(torch.tensor([[5], [6]]))
            with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
                decoder.step(torch.tensor([[5], [6]]))
        counts.append({event.key: event.count for event in seen.key_averages()})
        for event in seen.key_averages(group_by_input_shape=True):
            if event.key in (
                "aten::cat",
                "aten::repeat_interleave",
                "aten::index_select",
                "aten::clone",
                "aten::copy_",
            ):
                sizes = [size for shape in event.input_shapes if shape for size in shape]
                assert length + 2 not in sizes, event.key
    assert counts[0] == counts[1]

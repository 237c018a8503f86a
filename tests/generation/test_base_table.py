"""The lean step of every stock base of the table gives the base's own forward, whatever layers compute it."""

import pytest
import torch

from tests.tiny_bases import WINDOW, make_base
from unimodal.generation.decoders.base_table import BASES, find_lean_problem
from unimodal.generation.decoders.lean_decoder import LeanDecoder
from unimodal.generation.decoders.lean_layers import LeanLayers
from unimodal.generation.decoders.packed_layers import PackedLayers
from unimodal.generation.decoders.slot_decoders import LeanSlots
from unimodal.generation.native.build import load_native
from unimodal.generation.native.native_layers import NativeLayers, find_native_problem

KINDS = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {},
    "gemma3_text": {},
    "smollm3": {"no_rope_layers": [1, 0]},
    "phi3": {"partial_rotary_factor": 0.5},
    "olmo2": {},
    "granite": {},
}
LAYERS = {"lean": LeanLayers, "packed": PackedLayers, "native": NativeLayers}
PROMPTS = [[3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [8, 9], [1], [2, 3, 4, 5, 6]]  # longer than a window


def list_layers():
    marks = [] if load_native()[0] is not None else [pytest.mark.skip(reason=load_native()[1])]
    return [pytest.param(name, marks=marks if name == "native" else []) for name in LAYERS]


every_layers = pytest.mark.parametrize("layers", list_layers())


@torch.inference_mode()
def read_alone(model, text):
    return model.get_decoder()(input_ids=torch.tensor([text]), use_cache=False).last_hidden_state[0, -1]


def assert_ends(model, hidden, texts):
    expected = torch.stack([read_alone(model, text) for text in texts])
    torch.testing.assert_close(hidden, expected, rtol=2e-5, atol=2e-5)


def draw(num_streams, num_new, seed):
    return torch.randint(0, 45, (num_streams, num_new), generator=torch.Generator().manual_seed(seed))


def append(texts, new):
    return [[*text, *row] for text, row in zip(texts, new.tolist(), strict=True)]


def test_the_table_is_whole():
    assert {type(make_base(kind, None, **settings).get_decoder()).__name__ for kind, settings in KINDS.items()} == set(
        BASES
    )


@every_layers
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_steps_give_the_forward_of_the_base(kind, layers):
    """Ragged prompts beyond a window, steps of one token and several, a tree of guesses, and what is kept of it."""
    model = make_base(kind, None, **KINDS[kind])
    for slots in (False, True):
        own = LAYERS[layers](model)
        decoder = LeanSlots(own, 64) if slots else LeanDecoder(own)
        texts, hidden = PROMPTS, decoder.prefill(PROMPTS, 0, 40)
        for seed, num_new in enumerate((1, WINDOW + 1, 1)):
            assert_ends(model, hidden, texts)
            new = draw(4, num_new, seed)
            texts, hidden = append(texts, new), decoder.step(new)
        assert_ends(model, hidden, texts)
        branches = [[0], [0, 1], [0, 2], [0, 2, 3]]  # what each new token sees, itself last
        visible = torch.zeros(1, 4, 4, dtype=torch.bool)
        for number, seen in enumerate(branches):
            visible[0, number, seen] = True
        new, offsets = draw(4, 4, 9), torch.tensor([[len(seen) - 1 for seen in branches]] * 4)
        every = decoder.step(new, offsets, visible, every=True)
        for number, seen in enumerate(branches):
            assert_ends(model, every[:, number], append(texts, new[:, seen]))
        decoder.commit([[0, 2, 3]] * 4, 4)
        texts, last = append(texts, new[:, [0, 2, 3]]), draw(4, 1, 10)
        decoder.keep([2, 0])
        texts = append([texts[2], texts[0]], last[:2])
        assert_ends(model, decoder.step(last[:2]), texts)


@pytest.mark.parametrize("kind", ["phi", "gpt2", "starcoder2", "mixtral", "cohere", "stablelm"])
def test_other_bases_are_refused_in_one_line(kind):
    model = make_base(kind, None)
    assert "is none of LlamaModel" in find_lean_problem(model)
    with pytest.raises(ValueError, match="use decoder='reference'"):
        LeanLayers(model)


def test_layers_that_were_replaced_are_refused():
    model = make_base("qwen3", None)
    model.model.layers[1] = torch.nn.Identity()
    assert find_lean_problem(model) == "a decoder layer has been replaced"


def test_what_the_native_step_does_not_know_falls_back(monkeypatch):
    narrow = make_base("llama", None, head_dim=4)
    assert "a width of 4" in find_native_problem(narrow)
    model = make_base("llama", None)
    monkeypatch.setattr(
        "unimodal.generation.native.native_layers.load_native", lambda: (None, "there is no C++ compiler")
    )
    assert find_native_problem(model) == "there is no C++ compiler"
    with pytest.raises(ValueError, match="the native step does not fit: there is no C"):
        NativeLayers(model)

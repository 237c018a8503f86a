"""Layers with windows hold what they can still see and no more, and answer as the stock forward does."""

import pytest
import torch

from tests.generation.test_base_table import LAYERS, list_layers
from tests.tiny_bases import WINDOW, make_base
from unimodal.generation.decoders.lean_decoder import LeanDecoder
from unimodal.generation.decoders.lean_layers import LeanLayers
from unimodal.generation.decoders.paged_cache import BLOCK
from unimodal.generation.decoders.reference_cache import WindowLayer
from unimodal.generation.decoders.reference_decoder import ReferenceDecoder
from unimodal.generation.decoders.slot_decoders import LeanSlots, ReferenceSlots
from unimodal.generation.decoders.step_decoder import CachedPrefix
from unimodal.generation.kinds import CACHES

LEAN = ("mistral", "qwen2", "gemma2", "gemma3_text", "phi3")
OTHERS = ("starcoder2", "cohere2", "mixtral", "mistral", "gemma3_text")
LENGTHS = (200, 3, 70)
LOSSES = {"model": 2e-5, "bfloat16": 0.05, "int8": 0.1}


@pytest.fixture(scope="module")
def bases():
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = make_base(kind, None, max_position_embeddings=512)
        return made[kind]

    return get


@torch.inference_mode()
def read_stock(model, text):
    """The states [N, E] of all tokens of a text, by the stock forward."""
    return model.get_decoder()(input_ids=torch.tensor([text]), use_cache=False).last_hidden_state[0]


def draw_texts(extra, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 45, (length + extra,), generator=generator).tolist() for length in LENGTHS]


def count_held(decoder):
    """The most tokens that a layer with a window holds of a stream."""
    if isinstance(decoder, ReferenceDecoder):
        return max(layer.num_held for layer in decoder.cache.layers if isinstance(layer, WindowLayer))
    [paged] = [paged for paged in decoder.cached.caches if paged.window is not None]
    assert paged.num_used * BLOCK * len(decoder.streams) >= 1
    which = decoder.cached.caches.index(paged)
    held = [stream.held[which] for stream in decoder.streams]
    assert paged.num_used == sum(len(one.blocks) + len(one.spare) for one in held)  # nothing is lost
    return max(len(one.blocks) + len(one.spare) for one in held) * BLOCK


def walk(model, decoder, loss, most_held):
    """Ragged prompts, steps of one token and of several, guesses that are taken back, rows that go and are copied,
    until the texts are many windows long: every state is that of the stock forward."""
    texts = draw_texts(200)
    stock = [read_stock(model, text) for text in texts]
    ends = list(LENGTHS)

    def check(hidden, rows, at):
        expected = torch.stack([stock[row][end] for row, end in zip(rows, at, strict=True)])
        error = (hidden - expected).norm(dim=-1) / expected.norm(dim=-1)
        assert float(error.max()) < loss

    rows = [0, 1, 2]
    check(
        decoder.prefill([text[:n] for text, n in zip(texts, LENGTHS, strict=True)], 0, 500), rows, [n - 1 for n in ends]
    )
    turns = [1] * 5 + [WINDOW + 3, 2] + [1] * 3
    for turn in range(60):
        num_new = turns[turn % len(turns)]
        ids = torch.tensor([texts[row][end : end + num_new] for row, end in zip(rows, ends, strict=True)])
        wrong = ids.clone()
        if num_new > 2:
            wrong[:, 2:] = 44 - wrong[:, 2:]  # guesses that turn out to be wrong
        check(decoder.step(wrong, every=True)[:, 0], rows, ends)
        if num_new > 2:
            kept = [min(2, row + 1) for row in range(len(rows))]  # not as many of each
            decoder.commit([range(num) for num in kept], num_new)
            ends = [end + num for end, num in zip(ends, kept, strict=True)]
        else:
            ends = [end + num_new for end in ends]
        assert turn < 1 or count_held(decoder) <= most_held
        if turn == 30:
            decoder.keep([2, 0, 0])
            rows, ends = [2, 0, 0], [ends[2], ends[0], ends[0]]
    assert min(ends) > 5 * WINDOW


@pytest.mark.sweep
@pytest.mark.sliced
@pytest.mark.parametrize("layers", list_layers())
@pytest.mark.parametrize("slots", [False, True])
@pytest.mark.parametrize("kv", CACHES)
@pytest.mark.parametrize("kind", LEAN)
@torch.inference_mode()
def test_a_window_is_all_that_is_held_and_the_states_are_those_of_the_base(bases, kind, kv, slots, layers):
    model = bases(kind)
    own = LAYERS[layers](model, kv=kv) if layers == "lean" else LAYERS[layers](model, "float32", kv)
    decoder = LeanSlots(own, 512) if slots else LeanDecoder(own)
    walk(model, decoder, LOSSES[kv], 2 * BLOCK + BLOCK)  # a window of 8 lies in two blocks; one more for 11 tokens


@pytest.mark.sweep
@pytest.mark.parametrize("slots", [False, True])
@pytest.mark.parametrize("kind", OTHERS)
@torch.inference_mode()
def test_the_models_own_forward_holds_a_window_too(bases, kind, slots):
    model = bases(kind)
    decoder = (ReferenceSlots if slots else ReferenceDecoder)(model)
    walk(model, decoder, 2e-5, WINDOW + 64 + 3)


@pytest.mark.sweep("windows")
@pytest.mark.parametrize("kind", ["mistral", "gemma3_text"])
@torch.inference_mode()
def test_memory_does_not_grow_with_the_text(bases, kind):
    """The bytes of the layers with windows, measured late and later; those of the layers that see all grow."""
    decoder = LeanDecoder(LeanLayers(bases(kind)))
    decoder.prefill([[5] * 40, [6] * 130], 0, 40)
    sizes = []
    for number in range(300):
        decoder.step(torch.tensor([[number % 40], [number % 39]]))
        if number in (100, 299):
            sizes.append([paged.cache.num_bytes for paged in decoder.cached.caches])
    assert sizes[0][-1] == sizes[1][-1]
    assert kind == "mistral" or sizes[0][0] < sizes[1][0]
    decoder = ReferenceDecoder(bases(kind))
    decoder.prefill([[5] * 40, [6] * 130], 0, 40)
    rooms = set()
    for number in range(300):
        decoder.step(torch.tensor([[number % 40], [number % 39]]))
        rooms |= {layer._room[0].shape[2] for layer in decoder.cache.layers if isinstance(layer, WindowLayer)}
    assert max(rooms) <= 2 * (130 + WINDOW) and min(rooms) <= WINDOW + 64


@pytest.mark.parametrize(
    "make", [lambda model: LeanDecoder(LeanLayers(model)), ReferenceDecoder], ids=["lean", "reference"]
)
@pytest.mark.parametrize("kind", ["mistral", "gemma2"])
@torch.inference_mode()
def test_a_later_turn_goes_on_from_what_was_held(bases, kind, make):
    """An export begins a further text; what lies before its window cannot, and says so."""
    model = bases(kind)
    [text, *_] = draw_texts(100)
    first, second = make(model), make(model)
    first.prefill([text[:200], text[:10]], 0, 300)
    for end in range(200, 280):
        first.step(torch.tensor([[text[end]], [text[end - 190]]]))
    cache, short = first.export(0), first.export(1)
    assert 0 < cache.least <= 280 and short.least <= 90
    prompts = [[*text[:280], *text[:5]], text[:95]]
    hidden = second.prefill(prompts, 0, 320, [CachedPrefix(cache, 280), CachedPrefix(short, 90)])
    expected = torch.stack([read_stock(model, prompt)[-1] for prompt in prompts])
    torch.testing.assert_close(hidden, expected, rtol=2e-5, atol=2e-5)
    assert second.num_computed == 5

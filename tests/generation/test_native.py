"""The compiled step: its packed weights are what they say, and a row is the same to the last bit in any batch."""

import subprocess

import pytest
import torch

from unimodal.generation.decoders.kv_cache import KeyValueCache, narrow, widen
from unimodal.generation.decoders.lean_decoder import LeanDecoder
from unimodal.generation.decoders.packed_decoder import PackedDecoder
from unimodal.generation.decoders.packed_layers import PackedLayers
from unimodal.generation.decoders.products import PRODUCTS
from unimodal.generation.decoders.slot_decoders import LeanSlots
from unimodal.generation.kinds import CACHES, WEIGHTS
from unimodal.generation.native import build
from unimodal.generation.native.native_layers import NativeLayers
from unimodal.generation.native.product import NativeProduct
from unimodal.generation.packing import GROUP, quantise_int4, quantise_int8

needs_native = pytest.mark.skipif(build.load_native()[0] is None, reason=build.load_native()[1])
SHAPES = [(16, 32), (40, 96), (7, 50), (200, 31)]  # whole blocks and groups, and parts of them


def make_weight(rows, cols, seed=0):
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def quantise_inputs(x):
    """The formula of llama.cpp's q8_0, of a row: 32 inputs by the largest, to ±127."""
    padded = torch.nn.functional.pad(x, (0, -x.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    scales = padded.abs().amax(2, keepdim=True) / 127
    return ((padded / scales.clamp(min=1e-30)).round() * scales).flatten(1)[:, : x.shape[1]]


def restore(weight, kind):
    """The weights that a kind keeps of these."""
    padded = torch.nn.functional.pad(weight, (0, -weight.shape[1] % GROUP))
    if kind == "float32":
        return weight
    if kind == "bfloat16":
        return weight.bfloat16().float()
    whole, scales = (quantise_int8 if kind == "int8" else quantise_int4)(padded, GROUP)
    groups = whole.float().unflatten(1, (-1, GROUP)) - (8 if kind == "int4" else 0)
    return (groups * scales[..., None]).flatten(1)[:, : weight.shape[1]]


@needs_native
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_product_is_that_of_the_weights_that_are_kept(kind, shape):
    weight, bias = make_weight(*shape), make_weight(1, shape[0], 1)[0]
    x = make_weight(9, shape[1], 2)
    read = quantise_inputs(x) if kind in ("int8", "int4") else x
    expected = read @ restore(weight, kind).T + bias
    torch.testing.assert_close(NativeProduct(weight, bias, kind)(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(NativeProduct(weight, None, kind)(x), expected - bias, rtol=1e-4, atol=1e-4)


@needs_native
@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_row_of_a_product_is_the_same_bits_in_any_batch(kind):
    product, x = NativeProduct(make_weight(90, 96), None, kind), make_weight(70, 96, 3)
    whole = product(x)
    for rows in (1, 2, 3, 5, 6, 7, 67):
        for begin in range(0, 70 - rows, 11):
            assert torch.equal(product(x[begin : begin + rows]), whole[begin : begin + rows])


@pytest.mark.parametrize("kind", WEIGHTS)
def test_torchs_products_are_near_and_do_not_depend_on_the_batch(kind):
    weight, x = make_weight(64, 96), make_weight(20, 96, 3)
    product = PRODUCTS[kind](weight, None)
    error = (product(x) - x @ weight.T).norm() / (x @ weight.T).norm()
    assert error < {"float32": 1e-6, "bfloat16": 0.01, "int8": 0.02, "int4": 0.15}[kind]
    alone = torch.cat([product(row[None]) for row in x])
    torch.testing.assert_close(product(x), alone, rtol=1e-5, atol=1e-5)


def test_four_bits_are_no_worse_than_those_of_llama_cpp():
    """q4_0: the scale is the weight of largest size by -8. Here the best of several scales is taken."""
    groups = make_weight(64, 256).unflatten(1, (-1, GROUP))
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    scale = (largest / -8).half().float()
    published = ((groups / scale + 8.5).floor().clamp(0, 15) - 8) * scale
    ours = restore(groups.flatten(1), "int4").unflatten(1, (-1, GROUP))
    assert (ours - groups).square().sum() < 0.95 * (published - groups).square().sum()
    zeros = restore(torch.zeros(2, GROUP), "int4")
    assert not zeros.any()


@needs_native
@pytest.mark.parametrize("kv", CACHES)
@pytest.mark.parametrize("weights", WEIGHTS)
@torch.inference_mode()
def test_a_stream_is_the_same_bits_alone_and_beside_others(model, weights, kv):
    """Whatever its neighbours, its padding, its row of the cache, and the tokens that are read at a time."""
    layers = NativeLayers(model, weights, kv)
    text = [3, 4, 5, 6, 7, 8, 9]
    alone = LeanDecoder(layers)
    alone.prefill([text[:2]], 0, 32)
    expected = [alone.step(torch.tensor([[token]]))[0] for token in text[2:]]
    together = LeanDecoder(layers)
    found = together.prefill([[1] * 12, text, [2, 2]], 0, 40)
    assert torch.equal(found[1], expected[-1])
    slots = LeanSlots(layers, 64)
    slots.join([[5, 5, 5], text[:4]], 0, [20, 20])
    every = slots.step(torch.tensor([[1, 1, 1], text[4:]]), every=True)
    assert all(torch.equal(every[1, number], expected[number + 2]) for number in range(3))


@pytest.mark.parametrize("native", [pytest.param(True, marks=needs_native), False])
@pytest.mark.parametrize("kv", CACHES)
@torch.inference_mode()
def test_a_narrow_cache_loses_what_its_bits_say(model, kv, native):
    make = NativeLayers if native else PackedLayers
    exact, own = LeanDecoder(PackedLayers(model)), LeanDecoder(make(model, kv=kv))
    prompts = [[3, 4, 5, 6, 7], [8, 9]]
    for decoder in (exact, own):
        decoder.prefill(prompts, 0, 32)
    error = 0.0
    for number in range(4):
        ids = torch.tensor([[number], [number + 5]])
        expected = exact.step(ids)
        error = max(error, float((own.step(ids) - expected).norm() / expected.norm()))
    assert error < {"model": 1e-5, "bfloat16": 0.02, "int8": 0.05}[kv]
    assert kv == "model" or error > 1e-4
    assert own.cached.num_bytes < {"model": 1.01, "bfloat16": 0.51, "int8": 0.51}[kv] * exact.cached.num_bytes


def test_the_8_bits_of_a_cache_are_by_head_and_token():
    x = make_weight(6, 64) * torch.tensor([1e-3, 1, 10, 0, 100, 5])[:, None]
    whole, scales = narrow(x)
    kept = widen(whole, scales, torch.float32)
    assert ((kept - x).abs() <= x.abs().amax(1, keepdim=True) / 250).all()
    assert torch.equal(narrow(x[2:3])[0], whole[2:3])  # of its own row alone
    again, same = narrow(kept)
    assert torch.equal(again, whole) and torch.equal(same, scales)
    with pytest.raises(ValueError, match="a cache of 'int3' is unknown; use model, bfloat16, int8"):
        KeyValueCache((1, 2, 1, 64, 8), "int3", torch.float32, torch.device("cpu"))


@pytest.fixture
def fresh_build(monkeypatch, tmp_path):
    """Nothing is compiled yet, and what is said of it is not kept."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    build.load_native.cache_clear()
    yield tmp_path
    build.load_native.cache_clear()


def test_what_cannot_be_compiled_is_said_in_one_line(fresh_build, monkeypatch, model, capfd):
    monkeypatch.setenv("CXX", "no-such-compiler")
    library, reason = build.load_native()
    assert library is None and reason == "there is no C++ compiler (no-such-compiler)"
    assert type(PackedDecoder(model).layers) is PackedLayers

    def fail(command, **_):
        raise subprocess.CalledProcessError(1, command, stderr="step.cpp:1: error: it is wrong\nmore\n")

    build.load_native.cache_clear()
    monkeypatch.setenv("CXX", "c++")
    monkeypatch.setattr(subprocess, "run", fail)
    assert build.load_native()[1] == "c++ could not compile step.cpp: step.cpp:1: error: it is wrong"
    assert list(fresh_build.iterdir()) == []  # nothing half-made


def test_it_can_be_turned_off(fresh_build, monkeypatch, model):
    monkeypatch.setenv(build.OFF, "1")
    assert build.load_native() == (None, f"{build.OFF} is set")
    assert type(PackedDecoder(model).layers) is PackedLayers


@needs_native
@pytest.mark.parametrize("kv", CACHES)
@torch.inference_mode()
def test_tokens_that_see_the_same_entries_are_attended_to_together_and_are_the_same_bits(make_model, kv):
    """Of a prompt that is read at once and in pieces, and of rows that share a long beginning: streams of other
    beginnings stand between them, and their own ends are not of one length."""
    layers = NativeLayers(make_model(max_positions=1024), "float32", kv)
    text = torch.randint(1, 40, (600,), generator=torch.Generator().manual_seed(0)).tolist()
    whole, pieces = LeanDecoder(layers), LeanDecoder(layers)
    expected = whole.prefill([text], 0, 700)
    pieces.prefill([text[:301]], 0, 700)
    pieces.step(torch.tensor([text[301:595]]))
    states = [pieces.step(torch.tensor([[token]])) for token in text[595:]]
    assert torch.equal(states[-1], expected)
    prompts = [[*text[:400], *[7] * number] for number in (1, 90, 3)]
    prompts[1:1] = [[5] * 300, [*text[:400], 9], [6]]
    found = []
    for shares in (True, False):
        decoder = LeanDecoder(layers)
        decoder.shares = shares
        found.append([decoder.prefill(prompts, 0, 600)])
        for number in range(3):
            found[-1].append(decoder.step(torch.full((6, 1 + number), 3 + number), every=True))
    assert all(torch.equal(*both) for both in zip(*found, strict=True))

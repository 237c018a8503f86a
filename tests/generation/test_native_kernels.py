"""The compiled step on this processor: threads, long contexts, AVX-512 beside AVX2, and large pages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unimodal.generation.decoders.lean_decoder import LeanDecoder
from unimodal.generation.decoders.packed_layers import PackedLayers
from unimodal.generation.kinds import CACHES, WEIGHTS
from unimodal.generation.large_pages import LargePages, ask_for_large_pages
from unimodal.generation.native import build
from unimodal.generation.native.native_layers import NativeLayers
from unimodal.generation.native.product import NativeProduct

needs_native = pytest.mark.skipif(build.load_native()[0] is None, reason=build.load_native()[1])
LONG = 1300  # positions: three segments of attention


@pytest.fixture
def with_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def long_model(make_model):
    """Three groups of query heads, of a width that is no multiple of 16."""
    return make_model(hidden_size=144, num_heads=6, num_kv_heads=2, max_positions=2048)


def read_text(layers, num=LONG):
    """The states of a long prompt and of three tokens behind it."""
    text = torch.randint(1, 40, (num,), generator=torch.Generator().manual_seed(0)).tolist()
    decoder = LeanDecoder(layers)
    states = [decoder.prefill([text], 0, num + 8)]
    return torch.cat([*states, *(decoder.step(torch.tensor([[token]])) for token in (3, 4, 5))])


@needs_native
@pytest.mark.parametrize("kv", CACHES)
@torch.inference_mode()
def test_a_long_context_is_attended_to_as_torchs_operators_do(long_model, kv):
    found, expected = read_text(NativeLayers(long_model, kv=kv)), read_text(PackedLayers(long_model, kv=kv))
    error = (found - expected).norm() / expected.norm()
    assert error < {"model": 1e-5, "bfloat16": 1e-3, "int8": 1e-2}[kv]  # a last bit may round to another number


@needs_native
@pytest.mark.parametrize("weights", WEIGHTS)
@torch.inference_mode()
def test_the_number_of_threads_changes_no_bit(long_model, weights, with_threads):
    found = []
    for threads in (1, 2, 5):
        with_threads(threads)
        found.append(read_text(NativeLayers(long_model, weights), 600))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@needs_native
@torch.inference_mode()
def test_callers_of_several_threads_and_of_a_fork_have_answers(with_threads):
    from concurrent.futures import ThreadPoolExecutor

    with_threads(2)
    product, x = NativeProduct(torch.randn(4000, 96), None, "int8"), torch.randn(3, 96)
    expected = product(x)
    with ThreadPoolExecutor(4) as several:
        assert all(torch.equal(found, expected) for found in several.map(lambda _: product(x), range(200)))
    child = os.fork()
    if not child:  # it has none of the threads that answered above
        os._exit(0 if torch.equal(product(x), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0


COMPARED = """
import sys, torch
from unimodal.generation.native.product import NativeProduct
torch.manual_seed(0)
weight, x = torch.randn(90, 97), torch.randn(13, 97)
torch.save([NativeProduct(weight, None, kind)(x) for kind in sys.argv[2:]], sys.argv[1])
"""


@needs_native
@pytest.mark.skipif(build.choose_flags() == build.FLAGS, reason="this processor has no AVX-512 with VNNI")
def test_avx2_gives_the_bits_of_avx512(tmp_path):
    """For machines of both kinds: only the pace differs."""
    found = []
    for number, narrow in enumerate(("", "1")):
        command = [sys.executable, "-c", COMPARED, str(tmp_path / f"{number}.pt"), *WEIGHTS]
        subprocess.run(command, check=True, env=os.environ | {build.NARROW: narrow})
        found.append(torch.load(tmp_path / f"{number}.pt"))
    assert all(torch.equal(*both) for both in zip(*found, strict=True))


def test_flags_are_those_of_the_processor(monkeypatch):
    monkeypatch.delenv(build.NARROW, raising=False)
    features = {"": False, " ".join(build.WIDE): True, " ".join(build.WIDE[1:]): False}
    for known, wide in features.items():
        monkeypatch.setattr(Path, "is_file", lambda _: True)
        monkeypatch.setattr(Path, "read_text", lambda _, known=known: f"model name: x\nflags\t\t: avx2 {known}\n")
        assert ("-mavx512vnni" in build.choose_flags()) == wide
    monkeypatch.setattr(Path, "read_text", lambda _: "flags : " + " ".join(build.WIDE))
    monkeypatch.setenv(build.NARROW, "1")
    assert build.choose_flags() == build.FLAGS


def test_copies_in_large_pages_are_apart_and_begin_at_whole_lines():
    pages = LargePages(4096)
    tensors = [torch.randn(*shape) for shape in ((3, 5), (700,), (40, 40))] + [torch.arange(9, dtype=torch.int8)]
    copies = [pages.copy(tensor) for tensor in tensors]
    for tensor, held in zip(tensors, copies, strict=True):
        assert torch.equal(held, tensor) and held.data_ptr() % 64 == 0
        held.zero_()
    assert not any(held.any() for held in copies)
    assert all(tensor.any() for tensor in tensors)


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage/enabled").is_file(), reason="no large pages here")
def test_linux_gives_large_pages_to_who_asks():
    if "[never]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text():
        pytest.skip("this Linux gives none")
    memory = ask_for_large_pages(torch.empty(64 << 20, dtype=torch.uint8)).zero_()
    begin, inside = memory.data_ptr() + len(memory) // 2, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and ":" not in first:
            low, high = (int(part, 16) for part in first.split("-"))
            inside = low <= begin < high
        elif inside and first == "VmFlags:":
            assert "hg" in line.split()
            return
    raise AssertionError("the memory is nowhere")

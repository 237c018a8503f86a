"""A precision that the processor does slowly is told, once and by one process; freed memory is kept."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from unimodal.training.processor import is_slow


@pytest.mark.parametrize("precision, kind, machine, products, slow", [
    ("bfloat16", "cpu", "x86_64", (False, False), True),
    ("bfloat16", "cpu", "x86_64", (True, False), False),
    ("bfloat16", "cpu", "x86_64", (False, True), False),
    ("float32", "cpu", "x86_64", (False, False), False),
    ("bfloat16", "cuda", "x86_64", (False, False), False),
    ("bfloat16", "cpu", "aarch64", (False, False), False),  # torch does not say
])  # fmt: skip
def test_half_precision_is_slow_without_its_products(monkeypatch, precision, kind, machine, products, slow):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    for name, value in zip(("_is_avx512_bf16_supported", "_is_amx_tile_supported"), products, strict=True):
        monkeypatch.setattr(torch.cpu, name, lambda value=value: value)
    assert is_slow(precision, torch.device(kind)) is slow


COUNT_FAULTS = """
import resource, torch
from unimodal.training.processor import keep_freed_memory
def count():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.zeros(2**23).add_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
count()
plain, kept = count(), keep_freed_memory()
count()
print(int(kept), plain, count())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator is glibc's")
def test_freed_memory_is_kept_and_the_environment_goes_first():
    def count_faults(**more: str) -> list[int]:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
        command = [sys.executable, "-c", COUNT_FAULTS]
        done = subprocess.run(command, env=env | more, capture_output=True, text=True, check=True)
        return [int(number) for number in done.stdout.split()]

    kept, plain, after = count_faults()
    if not kept:
        pytest.skip("this C library has no mallopt")
    assert plain > 1000 > 10 * after
    assert count_faults(MALLOC_ARENA_MAX="8")[0] == 0

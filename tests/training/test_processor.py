"""A precision that the processor does slowly is told, once and by one process."""

import platform

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

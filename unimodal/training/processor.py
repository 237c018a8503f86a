"""What the processor does slowly."""

from __future__ import annotations

import platform
import sys

import torch

from unimodal.training.distributed import Parallel


def is_slow(precision: str, device: torch.device) -> bool:
    """Whether training in `precision` is known to be slow on the device."""
    if precision != "bfloat16" or device.type != "cpu" or platform.machine() not in ("x86_64", "AMD64"):
        return False
    return not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def tell_slow_precision(precision: str, parallel: Parallel) -> None:
    """One line of the main process where another precision would be faster."""
    if parallel.is_main and is_slow(precision, parallel.device):
        told = "this processor has no bfloat16 products: loop.precision=float32 is several times faster here"
        print(told, file=sys.stderr, flush=True)

"""What the processor and its allocator do slowly."""

from __future__ import annotations

import ctypes
import os
import platform
import sys

import torch

from unimodal.training.distributed import Parallel

#: parameters of glibc's mallopt: what stays with the process when it is freed, what is asked for at once, and how many
#: blocks are mapped on their own
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Lets the memory of freed tensors stay with the process, for the next ones; -> whether the allocator does so.

    glibc gives large blocks back as soon as they are free, and each step then waits for the same pages again. The price
    is a higher peak of memory, since pieces that are free are kept too. Nothing is done where
    the environment tunes the allocator (`MALLOC_…`, `GLIBC_TUNABLES`) or where it is another one.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ) or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((MMAP_MAX, 0), (TRIM_THRESHOLD, 2**31 - 1), (TOP_PAD, 64 * 2**20))
    return all([mallopt(name, value) == 1 for name, value in settings])


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

"""Memory in large pages, for what every step reads.

A processor finds the place of each page in a table. Of 100 MB there are 25,600 pages of 4 kB or 50 of 2 MB, and looking
up the former takes up to half of the time of reading them. Linux gives large pages to who asks before the memory is
first written (`madvise`); elsewhere, and where it has none, nothing is lost.
"""

from __future__ import annotations

import ctypes
import sys

import torch
from torch import Tensor

_PAGE, _LARGE, _MADV_HUGEPAGE = 4096, 1 << 21, 14
_CHUNK = 32 * _LARGE  # bytes; what is not written takes no memory


def ask_for_large_pages(memory: Tensor) -> Tensor:
    """Ask for large pages for a new tensor, which nothing was written to; returns it."""
    size = memory.numel() * memory.element_size()
    if sys.platform == "linux" and memory.device.type == "cpu" and size >= _LARGE:
        begin = -(-memory.data_ptr() // _PAGE) * _PAGE
        end = (memory.data_ptr() + size) // _PAGE * _PAGE
        # an answer other than 0 says that this Linux has none
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_HUGEPAGE)
    return memory


class LargePages:
    """Copies of tensors, one behind the other in large pages, from `chunk` bytes that are taken at a time."""

    def __init__(self, chunk: int = _CHUNK) -> None:
        self._chunk = chunk
        self._free = torch.empty(0, dtype=torch.uint8)

    def copy(self, tensor: Tensor) -> Tensor:
        """A contiguous copy of a CPU tensor, which begins at a whole line of the processor's cache."""
        size = tensor.numel() * tensor.element_size()
        if size + 64 > len(self._free):
            self._free = ask_for_large_pages(torch.empty(max(size + 64, self._chunk), dtype=torch.uint8))
        begin = -self._free.data_ptr() % 64
        held, self._free = self._free[begin : begin + size], self._free[begin + size :]
        return held.view(tensor.dtype).view(tensor.shape).copy_(tensor)

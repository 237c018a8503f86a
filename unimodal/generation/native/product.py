"""One product with packed weights, by compiled code.

Shapes: M rows, N outputs, K inputs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from unimodal.generation.decoders.products import PRODUCTS, Product
from unimodal.generation.large_pages import LargePages
from unimodal.generation.native import structures
from unimodal.generation.native.build import load_native
from unimodal.generation.native.weights import BLOCK, KINDS, pack_blocks, pack_vector


class NativeProduct:
    """x @ W.T + bias [M, N] for x [M, K], over packed weights of a kind of `WEIGHTS`. Needs the compiled library."""

    def __init__(self, weight: Tensor, bias: Tensor | None, kind: str) -> None:
        library, reason = load_native()
        if library is None:
            raise ValueError(f"there is no native product: {reason}")
        self._library, self._kind = library, KINDS[kind]
        self.weight = LargePages(0).copy(pack_blocks(weight, kind))
        self.bias = None if bias is None else pack_vector(bias)
        self.num = len(weight)
        held = None if self.bias is None else self.bias.data_ptr()
        self._product = structures.PackedProduct(self.weight.data_ptr(), held, *weight.shape)

    def __call__(self, x: Tensor) -> Tensor:
        x = x.float().contiguous()
        out = torch.empty(len(x), len(self.weight) * BLOCK)
        self._library.project(
            ctypes.c_int64(self._kind),
            ctypes.byref(self._product),
            ctypes.c_void_p(x.data_ptr()),
            ctypes.c_int64(len(x)),
            ctypes.c_int64(0),
            ctypes.c_int64(len(self.weight)),
            ctypes.c_void_p(out.data_ptr()),
            ctypes.c_int64(torch.get_num_threads()),
        )
        return out[:, : self.num]


def choose_product(kind: str) -> Callable[[Tensor, Tensor | None], Product]:
    """What makes a product of weights on a processor: a `NativeProduct` if it can, else torch's."""
    return PRODUCTS[kind] if load_native()[0] is None else partial(NativeProduct, kind=kind)

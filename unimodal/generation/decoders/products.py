"""Products with copies of weights in one of several precisions, by torch's own operators.

    float32    a transposed copy, which a processor reads twice as fast for a few rows
    bfloat16   half the bytes, sums in float32
    int8       a scale for each output (`torch._weight_int8pack_mm`)
    int4       a scale for each 32 inputs of an output (`torch._weight_int4pack_mm_for_cpu`)

Each row is computed by itself: unlike torch's dynamically quantized products, none of these has a range that the rows
of a call share. `unimodal/generation/native` has faster ones for processors with AVX2.

Shapes: M rows, N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.generation.packing import GROUP, quantise_int4, quantise_int8

_BLOCK = 64  # outputs of the int4 operator come in such numbers


class Product(Protocol):
    """x @ W.T + bias [..., N] for float32 x [..., K]."""

    def __call__(self, x: Tensor) -> Tensor: ...


class _Float32:
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight.float().t().contiguous(), bias  # [K, N]

    def __call__(self, x: Tensor) -> Tensor:
        found = x @ self.weight
        return found if self.bias is None else found.add_(self.bias)


class _BFloat16:
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight.bfloat16(), bias

    def __call__(self, x: Tensor) -> Tensor:
        found = F.linear(x.bfloat16(), self.weight).float()
        return found if self.bias is None else found.add_(self.bias)


class _Int8:
    """The scale is applied behind the operator, which would round it to bfloat16."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        whole, scales = quantise_int8(weight, weight.shape[1])  # [N, K], [N, 1]
        self.weight, self.scales, self.bias = whole, scales[:, 0], bias
        self.ones = torch.ones(len(weight), dtype=torch.bfloat16)

    def __call__(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).bfloat16()
        found = torch._weight_int8pack_mm(flat, self.weight, self.ones).float().mul_(self.scales)
        found = found if self.bias is None else found.add_(self.bias)
        return found.view(*x.shape[:-1], -1)


class _Int4:
    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.num, inputs = weight.shape
        self.pad = -inputs % GROUP
        weight = F.pad(weight, (0, self.pad, 0, -self.num % _BLOCK))
        whole, scales = quantise_int4(weight, GROUP)  # 0 to 15, of which 8 is zero
        self.weight = torch._convert_weight_to_int4pack_for_cpu(whole.int(), 1)
        scales = scales.t().contiguous()  # [K / 32, N]
        self.scales, self.bias = torch.stack([scales, torch.zeros_like(scales)], -1).bfloat16(), bias

    def __call__(self, x: Tensor) -> Tensor:
        flat = F.pad(x.reshape(-1, x.shape[-1]).bfloat16(), (0, self.pad))
        found = torch._weight_int4pack_mm_for_cpu(flat, self.weight, GROUP, self.scales)[:, : self.num].float()
        found = found if self.bias is None else found.add_(self.bias)
        return found.view(*x.shape[:-1], -1)


#: kind of weights → what makes its product of a weight [N, K] and a bias [N] or None
PRODUCTS: dict[str, Callable[[Tensor, Tensor | None], Product]] = {
    "float32": _Float32,
    "bfloat16": _BFloat16,
    "int8": _Int8,
    "int4": _Int4,
}

"""Rounding: each dimension of a vector in (-1, 1) becomes the nearest of evenly spaced values (scalar quantization of
SQ-Codec, arXiv 2406.02328).

Shapes: B batch, N positions, D dimensions, which are the groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unimodal.tokenizers.parts.quantizers.interface import Quantized, QuantizeOptions, Quantizer, pass_straight_through


class RoundedQuantizer(Quantizer):
    """round(z · H) / H with H = `half_levels`: the 2H + 1 values from -1 to 1, whose codes count up from 0. There are D
    groups; values of another size than 1 are cut off."""

    def __init__(self, num_dims: int, half_levels: int = 9):
        super().__init__()
        if not 1 <= half_levels <= 32767 or num_dims < 1:
            raise ValueError(f"rounding needs a dimension and 1 to 32,767 half_levels; got {num_dims}, {half_levels}")
        self.num_dims, self.half_levels = num_dims, half_levels
        self.codebook_sizes = (2 * half_levels + 1,) * num_dims

    def quantize_batch(self, z: Tensor, mask: Tensor | None, options: QuantizeOptions) -> Quantized:
        ids = self.to_ids(z.detach())
        values = self.look_up_batch(ids)
        return Quantized(pass_straight_through(z, values), ids, z.new_zeros(()), values)

    def to_ids(self, z: Tensor) -> Tensor:
        """z: float32 [..., D] → int64 [..., D]; halves go to the even neighbour, as torch.round does."""
        return (z * self.half_levels).round().long().clamp(-self.half_levels, self.half_levels) + self.half_levels

    def look_up_batch(self, ids: Tensor) -> Tensor:
        return (ids - self.half_levels).float() / self.half_levels

    def make_table(self, group: int = 0) -> Tensor | None:
        return self.look_up_batch(torch.arange(2 * self.half_levels + 1)[:, None])

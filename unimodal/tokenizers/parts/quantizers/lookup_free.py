"""Lookup-free quantization: each dimension becomes its sign, and the bits of a group are one code.

LFQ is MAGVIT-v2's (arXiv 2310.05737); in groups it is WeTok's (arXiv 2508.05599): the entropy of a group of few bits
can be computed, that of all bits cannot.

Shapes: B batch, N positions, D dimensions (bits), G groups, b bits of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unimodal.tokenizers.parts.quantizers.interface import (
    Quantized,
    QuantizeOptions,
    Quantizer,
    average_real,
    pass_straight_through,
)


class LookupFreeQuantizer(Quantizer):
    """Signs of D dimensions in groups of consecutive ones; bit i of a group has weight 2^i, so the first dimension is
    the least significant. A value of exactly 0 is bit 0.

    group_bits: the bits of each group, together D: `(18,)` for Open-MAGVIT2's code, `(6, 12)` for its two factors,
    `(8, 8, 8, 8)` for WeTok.
    """

    def __init__(self, group_bits: tuple[int, ...], commitment: float = 0.25):
        super().__init__()
        if not group_bits or min(group_bits) < 1 or max(group_bits) > 62:
            raise ValueError(f"a group has 1 to 62 bits; got {group_bits}")
        self.group_bits, self.commitment = tuple(group_bits), commitment
        self.num_dims, self.codebook_sizes = sum(group_bits), tuple(2**bits for bits in group_bits)

    def quantize_batch(self, z: Tensor, mask: Tensor | None, options: QuantizeOptions) -> Quantized:
        bits = z > 0
        values = bits.float() * 2 - 1
        loss = self.commitment * average_real((z - values).square(), mask)
        return Quantized(pass_straight_through(z, values), self.to_ids(bits), loss, values)

    def to_ids(self, bits: Tensor) -> Tensor:
        """bits: bool [..., D] → int64 [..., G]."""
        groups = bits.long().split(self.group_bits, dim=-1)
        return torch.stack([(part << torch.arange(part.shape[-1], device=part.device)).sum(-1) for part in groups], -1)

    def to_bits(self, ids: Tensor) -> Tensor:
        """ids: int64 [..., G] → bool [..., D]; the inverse of ``to_ids``."""
        places = [torch.arange(bits, device=ids.device) for bits in self.group_bits]
        parts = [(ids[..., group, None] >> place) & 1 for group, place in enumerate(places)]
        return torch.cat(parts, dim=-1).bool()

    def look_up_batch(self, ids: Tensor) -> Tensor:
        return self.to_bits(ids).float() * 2 - 1

    def make_table(self, group: int = 0) -> Tensor | None:
        bits = self.group_bits[group]
        if bits > 16:
            return None
        return ((torch.arange(2**bits)[:, None] >> torch.arange(bits)) & 1).float() * 2 - 1

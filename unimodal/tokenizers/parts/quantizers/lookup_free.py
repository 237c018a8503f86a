"""Lookup-free quantization: each dimension becomes its sign, and the bits of a group are one code.

LFQ is MAGVIT-v2's (arXiv 2310.05737); in groups it is WeTok's (arXiv 2508.05599): the entropy of a group of few bits
can be computed, that of all bits cannot.

Shapes: B batch, N positions, D dimensions (bits), G groups, b bits of a group.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from unimodal.tokenizers.parts.quantizers.entropy import measure_entropy
from unimodal.tokenizers.parts.quantizers.interface import (
    Quantized,
    QuantizeOptions,
    average_real,
    pass_straight_through,
)
from unimodal.tokenizers.parts.quantizers.signs import FirstBit, SignQuantizer, list_sign_codes


class LookupFreeQuantizer(SignQuantizer):
    """Signs of D dimensions in groups of consecutive ones; bit i of a group has weight 2^i, so the first dimension is
    the least significant (`first_bit` "most" turns that round). A value of exactly 0 is bit 0.

    group_bits: the bits of each group, together D: `(18,)` for Open-MAGVIT2's code, `(6, 12)` for its two factors,
    `(8, 8, 8, 8)` for WeTok.
    Loss: commitment · ‖z − sg(q)‖², and in training entropy_weight · (E[H(p|z)] − diversity · H(E[p])) with
    p = softmax(2 z·c / temperature) over the codes c of a group. entropy_bits: other groups for the entropy alone, such
    as `(18,)` where ids are split in (6, 12). pool_groups: WeTok's code, which has groups of one size: E[p] is the mean
    over the groups too; without it the groups' losses are added up.
    """

    def __init__(
        self,
        group_bits: Sequence[int],
        commitment: float = 0.25,
        entropy_weight: float = 0.1,
        diversity: float = 1.0,
        temperature: float = 0.01,
        entropy_bits: Sequence[int] | None = None,
        pool_groups: bool = False,
        first_bit: FirstBit = "least",
    ):
        super().__init__(group_bits, first_bit, commitment, entropy_weight, diversity, entropy_bits)
        self.temperature, self.pool_groups = temperature, pool_groups
        if pool_groups and len(set(self.entropy_bits)) > 1:
            raise ValueError(f"pool_groups needs groups of one size; got {self.entropy_bits}")

    def quantize_batch(self, z: Tensor, mask: Tensor | None, options: QuantizeOptions) -> Quantized:
        bits = z > 0
        values = self.to_values(bits)
        loss = self.commitment * average_real((z - values).square(), mask) + self.regularize(z, mask)
        return Quantized(pass_straight_through(z, values), self.to_ids(bits), loss, values)

    def regularize(self, z: Tensor, mask: Tensor | None) -> Tensor:
        if not self.entropy_weight or not self.training:
            return z.new_zeros(())
        parts = self.split_for_entropy(z)
        if self.pool_groups:
            parts = [z.unflatten(-1, (len(parts), -1))]
        total = z.new_zeros(())
        for part in parts:
            logits = 2 * part @ list_sign_codes(part.shape[-1], self.first_bit, z.device).T
            total = total + measure_entropy(logits / self.temperature, mask).make_loss(all_weight=self.diversity)
        return self.entropy_weight * total

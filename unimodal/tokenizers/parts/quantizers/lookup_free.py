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
    Quantizer,
    average_real,
    pass_straight_through,
)
from unimodal.tokenizers.parts.quantizers.signs import (
    FirstBit,
    check_group_bits,
    list_sign_codes,
    pack_bits,
    unpack_bits,
)


class LookupFreeQuantizer(Quantizer):
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
        super().__init__()
        self.group_bits, self.commitment = check_group_bits(group_bits), commitment
        self.num_dims, self.codebook_sizes = sum(group_bits), tuple(2**bits for bits in group_bits)
        self.entropy_weight, self.diversity, self.temperature = entropy_weight, diversity, temperature
        self.entropy_bits = self.group_bits if entropy_bits is None else check_group_bits(entropy_bits)
        self.pool_groups, self.first_bit = pool_groups, first_bit
        if sum(self.entropy_bits) != self.num_dims:
            raise ValueError(f"entropy_bits are together {self.num_dims} bits; got {self.entropy_bits}")
        if pool_groups and len(set(self.entropy_bits)) > 1:
            raise ValueError(f"pool_groups needs groups of one size; got {self.entropy_bits}")

    def quantize_batch(self, z: Tensor, mask: Tensor | None, options: QuantizeOptions) -> Quantized:
        bits = z > 0
        values = bits.float() * 2 - 1
        loss = self.commitment * average_real((z - values).square(), mask) + self.regularize(z, mask)
        return Quantized(pass_straight_through(z, values), self.to_ids(bits), loss, values)

    def regularize(self, z: Tensor, mask: Tensor | None) -> Tensor:
        if not self.entropy_weight or not self.training:
            return z.new_zeros(())
        if max(self.entropy_bits) > 18:
            raise ValueError(
                f"the entropy of {max(self.entropy_bits)} bits has too many codes to list; "
                "set entropy_bits to smaller groups or entropy_weight to 0"
            )
        parts = list(z.split(self.entropy_bits, dim=-1))
        if self.pool_groups:
            parts = [z.unflatten(-1, (len(parts), -1))]
        total = z.new_zeros(())
        for part in parts:
            logits = 2 * part @ list_sign_codes(part.shape[-1], self.first_bit, z.device).T
            total = total + measure_entropy(logits / self.temperature, mask).make_loss(all_weight=self.diversity)
        return self.entropy_weight * total

    def to_ids(self, bits: Tensor) -> Tensor:
        """bits: bool [..., D] → int64 [..., G]."""
        return pack_bits(bits, self.group_bits, self.first_bit)

    def to_bits(self, ids: Tensor) -> Tensor:
        """ids: int64 [..., G] → bool [..., D]; the inverse of ``to_ids``."""
        return unpack_bits(ids, self.group_bits, self.first_bit)

    def look_up_batch(self, ids: Tensor) -> Tensor:
        return self.to_bits(ids).float() * 2 - 1

    def make_table(self, group: int = 0) -> Tensor | None:
        bits = self.group_bits[group]
        return None if bits > 16 else list_sign_codes(bits, self.first_bit)

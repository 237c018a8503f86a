"""Binary spherical quantization: a vector of length 1 becomes the nearest corner of a cube inside the sphere (Zhao et
al., arXiv 2406.07548).

Shapes: B batch, N positions, D dimensions (bits), G groups of b bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unimodal.tokenizers.parts.quantizers.entropy import measure_bit_entropy, measure_entropy
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


class BinarySphericalQuantizer(Quantizer):
    """Vectors are scaled to length 1; each dimension becomes ±1/√D, and the bits of a group are one code, the most
    significant first. A value of exactly 0 is bit 0.

    Loss: commitment · E[‖z − sg(q)‖²], the squares added up over D, and in training entropy_weight · (sureness ·
    E[H(p|z)] − diversity · H(E[p])) / inverse_temperature. p is that of independent bits, σ(4·z·q·inverse_temperature)
    of being 1 each, so that H(p|z) is the sum over the bits. H(E[p]) is approximated by the sum over groups of
    `entropy_bits`, by default those of the ids (the authors' "group"; their "analytical" has groups of one bit).
    """

    def __init__(
        self,
        group_bits: Sequence[int],
        commitment: float = 0.25,
        entropy_weight: float = 0.1,
        sureness: float = 1.0,
        diversity: float = 1.0,
        inverse_temperature: float = 1.0,
        entropy_bits: Sequence[int] | None = None,
        first_bit: FirstBit = "most",
    ):
        super().__init__()
        self.group_bits, self.first_bit = check_group_bits(group_bits), first_bit
        self.num_dims, self.codebook_sizes = sum(group_bits), tuple(2**bits for bits in group_bits)
        self.commitment, self.entropy_weight = commitment, entropy_weight
        self.sureness, self.diversity, self.inverse_temperature = sureness, diversity, inverse_temperature
        self.entropy_bits = self.group_bits if entropy_bits is None else check_group_bits(entropy_bits)
        if sum(self.entropy_bits) != self.num_dims:
            raise ValueError(f"entropy_bits are together {self.num_dims} bits; got {self.entropy_bits}")

    @property
    def size(self) -> float:
        """What every dimension of a code is, up to its sign: 1/√D."""
        return self.num_dims**-0.5

    def quantize_batch(self, z: Tensor, mask: Tensor | None, options: QuantizeOptions) -> Quantized:
        z = normalize(z, dim=-1)
        bits = z > 0
        values = (bits.float() * 2 - 1) * self.size
        loss = self.commitment * average_real((z - values).square().sum(-1), mask)
        if self.entropy_weight and self.training:
            loss = loss + self._regularize_unit(z, mask)
        return Quantized(pass_straight_through(z, values), self.to_ids(bits), loss, values)

    def regularize(self, z: Tensor, mask: Tensor | None) -> Tensor:
        if not self.entropy_weight or not self.training:
            return z.new_zeros(())
        return self._regularize_unit(normalize(z, dim=-1), mask)

    def _regularize_unit(self, z: Tensor, mask: Tensor | None) -> Tensor:
        if max(self.entropy_bits) > 18:
            raise ValueError(
                f"the entropy of {max(self.entropy_bits)} bits has too many codes to list; "
                "set entropy_bits to smaller groups or entropy_weight to 0"
            )
        of_each = average_real(measure_bit_entropy(4 * z * self.size * self.inverse_temperature).sum(-1), mask)
        of_all = z.new_zeros(())
        for part in z.split(self.entropy_bits, dim=-1):
            codes = list_sign_codes(part.shape[-1], self.first_bit, z.device) * self.size
            of_all = of_all + measure_entropy(2 * part @ codes.T * self.inverse_temperature, mask).of_all
        penalty = self.sureness * of_each - self.diversity * of_all
        return self.entropy_weight * penalty / self.inverse_temperature

    def to_ids(self, bits: Tensor) -> Tensor:
        """bits: bool [..., D] → int64 [..., G]."""
        return pack_bits(bits, self.group_bits, self.first_bit)

    def look_up_batch(self, ids: Tensor) -> Tensor:
        return (unpack_bits(ids, self.group_bits, self.first_bit).float() * 2 - 1) * self.size

    def make_table(self, group: int = 0) -> Tensor | None:
        bits = self.group_bits[group]
        return None if bits > 16 else list_sign_codes(bits, self.first_bit, torch.device("cpu")) * self.size

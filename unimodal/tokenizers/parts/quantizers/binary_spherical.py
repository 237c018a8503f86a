"""Binary spherical quantization: a vector of length 1 becomes the nearest corner of a cube inside the sphere (Zhao et
al., arXiv 2406.07548).

Shapes: B batch, N positions, D dimensions (bits), G groups of b bits.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import normalize

from unimodal.tokenizers.parts.quantizers.entropy import measure_bit_entropy, measure_entropy
from unimodal.tokenizers.parts.quantizers.interface import (
    Quantized,
    QuantizeOptions,
    average_real,
    pass_straight_through,
)
from unimodal.tokenizers.parts.quantizers.signs import FirstBit, SignQuantizer, list_sign_codes


class BinarySphericalQuantizer(SignQuantizer):
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
        super().__init__(group_bits, first_bit, commitment, entropy_weight, diversity, entropy_bits)
        self.sureness, self.inverse_temperature = sureness, inverse_temperature

    @property
    def size(self) -> float:
        """What every dimension of a code is, up to its sign: 1/√D."""
        return self.num_dims**-0.5

    def quantize_batch(self, z: Tensor, mask: Tensor | None, options: QuantizeOptions) -> Quantized:
        z = normalize(z, dim=-1)
        bits = z > 0
        values = self.to_values(bits)
        loss = self.commitment * average_real((z - values).square().sum(-1), mask)
        if self.entropy_weight and self.training:
            loss = loss + self._regularize_unit(z, mask)
        return Quantized(pass_straight_through(z, values), self.to_ids(bits), loss, values)

    def regularize(self, z: Tensor, mask: Tensor | None) -> Tensor:
        if not self.entropy_weight or not self.training:
            return z.new_zeros(())
        return self._regularize_unit(normalize(z, dim=-1), mask)

    def _regularize_unit(self, z: Tensor, mask: Tensor | None) -> Tensor:
        parts = self.split_for_entropy(z)
        of_each = average_real(measure_bit_entropy(4 * z * self.size * self.inverse_temperature).sum(-1), mask)
        of_all = z.new_zeros(())
        for part in parts:
            codes = list_sign_codes(part.shape[-1], self.first_bit, z.device) * self.size
            of_all = of_all + measure_entropy(2 * part @ codes.T * self.inverse_temperature, mask).of_all
        penalty = self.sureness * of_each - self.diversity * of_all
        return self.entropy_weight * penalty / self.inverse_temperature

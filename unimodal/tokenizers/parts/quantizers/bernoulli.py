"""Bernoulli bits: each dimension is the logit of a bit that is drawn in training (Instella-T2I, arXiv 2506.21022;
binary latents, arXiv 2304.04820).

Shapes: B batch, N positions, D width, K bits of a position, G groups of at most 62 bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unimodal.tokenizers.parts.quantizers.interface import (
    Quantized,
    QuantizeOptions,
    Quantizer,
    average_real,
    draw_uniform,
)
from unimodal.tokenizers.parts.quantizers.signs import (
    FirstBit,
    check_group_bits,
    list_sign_codes,
    pack_bits,
    unpack_bits,
)


class BernoulliQuantizer(Quantizer):
    """b ~ Bernoulli(σ(ℓ / temperature)) in training, σ(ℓ) > 0.5 otherwise; the gradient is that of σ(ℓ).

    num_dims: with it the logits are a linear layer of the vectors and the values are b · codebook, a row [D] for each
    bit (Instella). Without it the vectors are the logits and the bits, 0 and 1, are the values.
    Loss: sharpness · E[σ(ℓ)(1 − σ(ℓ))], which drives the bits to be sure.
    """

    codebook: nn.Parameter | None

    def __init__(
        self,
        group_bits: Sequence[int],
        num_dims: int | None = None,
        temperature: float = 1.0,
        sharpness: float = 1.0,
        first_bit: FirstBit = "least",
    ):
        super().__init__()
        self.group_bits, self.first_bit = check_group_bits(group_bits), first_bit
        self.num_bits = sum(group_bits)
        self.num_dims, self.codebook_sizes = num_dims or self.num_bits, tuple(2**bits for bits in group_bits)
        self.temperature, self.sharpness = temperature, sharpness
        self.projection = nn.Identity() if num_dims is None else nn.Linear(num_dims, self.num_bits)
        self.codebook = None if num_dims is None else nn.Parameter(torch.randn(self.num_bits, num_dims) * 0.02)

    def quantize_batch(self, z: Tensor, mask: Tensor | None, options: QuantizeOptions) -> Quantized:
        logits = self.projection(z)
        sure = torch.sigmoid(logits)
        if self.training:
            bits = draw_uniform(sure.shape, z.device, options.generator) < torch.sigmoid(logits / self.temperature)
        else:
            bits = sure > 0.5
        chosen = bits.float()
        loss = self.sharpness * average_real(sure * (1 - sure), mask)
        values = self.embed(chosen + sure - sure.detach())
        return Quantized(values, pack_bits(bits, self.group_bits, self.first_bit), loss, self.embed(chosen))

    def embed(self, bits: Tensor) -> Tensor:
        """bits: float [..., K] → values float32 [..., D]."""
        return bits if self.codebook is None else bits @ self.codebook.float()

    def to_bits(self, ids: Tensor) -> Tensor:
        """ids: int64 [..., G] → bool [..., K]; the inverse of how bits become ids."""
        return unpack_bits(ids, self.group_bits, self.first_bit)

    def look_up_batch(self, ids: Tensor) -> Tensor:
        return self.embed(self.to_bits(ids).float())

    def make_table(self, group: int = 0) -> Tensor | None:
        bits = self.group_bits[group]
        return None if bits > 16 else list_sign_codes(bits, self.first_bit) / 2 + 0.5

"""Scalar bins: each dimension of a trained continuous latent becomes a code of its own, without training (TokenBridge,
arXiv 2503.16430: 64 levels; CubiD, 2603.19232: 8 levels in ±9).

Shapes: B batch, N positions, D dimensions, which are the groups; K levels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unimodal.tokenizers.parts.quantizers.interface import Quantized, QuantizeOptions, Quantizer, pass_straight_through


class ScalarBinQuantizer(Quantizer):
    """K bins of equal probability under a normal distribution cut off at ±std_range; each stands for its mean, (φ(a) −
    φ(b)) / (Φ(b) − Φ(a)), and a value becomes the nearest of these means. There are D groups of K values.

    low, high: which values lie at ∓std_range, the same for all dimensions (TokenBridge: ±5); `fit` sets them dimension
    by dimension from data. TokenBridge's code is followed; CubiD's has the same bins.
    """

    center: Tensor
    spread: Tensor
    means: Tensor

    def __init__(
        self, num_dims: int, num_levels: int = 64, low: float = -5.0, high: float = 5.0, std_range: float = 3.0
    ):
        super().__init__()
        if num_levels > 65_536 or num_levels < 2 or not low < high or std_range <= 0:
            raise ValueError(
                "bins need 2 to 65,536 levels, low < high and std_range > 0; "
                f"got {num_levels}, {low}, {high}, {std_range}"
            )
        self.num_dims, self.num_bins, self.std_range = num_dims, num_levels, std_range
        self.codebook_sizes = (num_levels,) * num_dims
        self.register_buffer("center", torch.full((num_dims,), (low + high) / 2))
        self.register_buffer("spread", torch.full((num_dims,), (high - low) / 2 / std_range))
        self.register_buffer("means", list_bin_means(num_levels, std_range))

    @torch.no_grad()
    def fit(self, vectors: Tensor, mask: Tensor | None = None) -> None:
        """Sets each dimension's center and spread to the mean and the standard deviation of real vectors [B, N, D].
        ValueError for fewer than two vectors and for a dimension that is constant."""
        real = (vectors.flatten(0, 1) if mask is None else vectors[mask]).double()
        if len(real) < 2 or bool((real.std(0) == 0).any()):
            raise ValueError("bins are fitted to at least two vectors that differ in every dimension")
        self.center.copy_(real.mean(0))
        self.spread.copy_(real.std(0))

    def quantize_batch(self, z: Tensor, mask: Tensor | None, options: QuantizeOptions) -> Quantized:
        ids = self.to_ids(z.detach())
        values = self.look_up_batch(ids)
        return Quantized(pass_straight_through(z, values), ids, z.new_zeros(()), values)

    def to_ids(self, z: Tensor) -> Tensor:
        """z: float32 [..., D] → int64 [..., D]: the nearest mean, the lower of two that are as near."""
        borders = (self.means[1:] + self.means[:-1]) / 2
        return torch.bucketize(((z - self.center) / self.spread).contiguous(), borders)

    def look_up_batch(self, ids: Tensor) -> Tensor:
        return self.means[ids] * self.spread + self.center

    def make_table(self, group: int = 0) -> Tensor | None:
        return (self.means * self.spread[group] + self.center[group])[:, None].cpu()


def list_bin_means(num_levels: int, std_range: float) -> Tensor:
    """The mean of each of K bins of equal probability of a normal distribution cut off at ±std_range, float32 [K]."""
    shares = torch.linspace(0, 1, num_levels + 1, dtype=torch.float64)
    borders = torch.special.ndtri(shares).clamp(-std_range, std_range)
    density = torch.exp(-borders.square() / 2) / math.sqrt(2 * math.pi)
    below = torch.special.ndtr(borders)
    return ((density[:-1] - density[1:]) / (below[1:] - below[:-1])).float()

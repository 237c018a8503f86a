"""Whether two ways of computing hidden states agree, up to the rounding of the model's precision."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Relative differences that are rounding: of float32, and of half precision and 8 bits.
EXACT, ROUNDED = 1e-3, 0.25


def find_tolerance(model: nn.Module) -> float:
    """The relative difference of hidden states that rounding in this model's precision can make."""
    return EXACT if all(p.dtype == torch.float32 for p in model.parameters()) else ROUNDED


def measure_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference of a token's two states, relative to the expected one's length; both [..., D]."""
    found, expected = found.float(), expected.float()
    gap = (found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp_min(1e-6)
    return float(gap.max())

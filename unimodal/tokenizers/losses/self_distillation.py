"""An encoder that is tuned stays near its frozen self, layer by layer, the later and the farther layers more (UniFlow,
arXiv 2510.10575).

Shapes: B batch, N positions, D width, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


def measure_layers(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """The mean cosine distance α of each of L layers, float [L]; every layer is [B, N, D]."""
    pairs = zip(student, teacher, strict=True)
    return torch.stack([1 - cosine_similarity(ours, theirs, dim=-1).mean() for ours, theirs in pairs])


def weigh_layers(apart: Tensor, beta: float) -> Tensor:
    """w_l = l/L · exp(β · α_l), divided by their sum: float [L] of sum 1, without a gradient. apart: α, float [L]."""
    depth = torch.arange(1, len(apart) + 1, device=apart.device) / len(apart)
    weights = depth * (beta * apart.detach()).exp()
    return weights / weights.sum()


def distill_layers(student: Sequence[Tensor], teacher: Sequence[Tensor], beta: float) -> Tensor:
    """Σ w_l · α_l with the weights of `weigh_layers`: a scalar with a gradient to the student."""
    apart = measure_layers(student, teacher)
    return (weigh_layers(apart, beta) * apart).sum()

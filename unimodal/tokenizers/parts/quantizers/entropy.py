"""The entropy loss of codebooks: sure of each code, and all codes used (MaskGIT's code; LFQ, arXiv 2310.05737).

Shapes: B batch, N positions, C codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax, softmax


@dataclass(frozen=True)
class Entropy:
    """In nats, scalars with gradient. of_each: E[H(p|z)], how unsure a position is of its code. of_all: H(E[p]), how
    evenly the codes are used."""

    of_each: Tensor
    of_all: Tensor

    def make_loss(self, each_weight: float = 1.0, all_weight: float = 1.0) -> Tensor:
        """each_weight · E[H(p|z)] − all_weight · H(E[p])."""
        return each_weight * self.of_each - all_weight * self.of_all


def measure_entropy(logits: Tensor, mask: Tensor | None = None) -> Entropy:
    """logits: [B, N, …, C], divided by their temperature; mask: bool [B, N], None where all are real. E is the mean
    over all dimensions but the last."""
    flat = logits.flatten(0, -2) if mask is None else logits[mask].flatten(0, -2)
    if not len(flat):
        nothing = logits.sum() * 0
        return Entropy(nothing, nothing)
    probabilities = softmax(flat, dim=-1)
    average = probabilities.mean(0)
    of_each = -(probabilities * log_softmax(flat, dim=-1)).sum(-1).mean()
    return Entropy(of_each, -(average * (average + 1e-5).log()).sum())


def measure_bit_entropy(logits: Tensor) -> Tensor:
    """The entropy of one bit for each logit, the same shape: that of a code of independent bits is their sum,
    exactly."""
    return binary_cross_entropy_with_logits(logits, torch.sigmoid(logits), reduction="none")

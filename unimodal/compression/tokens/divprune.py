"""DivPrune (arXiv 2503.02175): keep the tokens that are most spread out, by greedy max-min cosine distance.

The first is the token with the largest distance to its nearest neighbour; every next one is the token farthest from
its nearest among the chosen (a 2-approximation of the max-min diversity problem).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unimodal.compression.method import Compressor, Plan, Span
from unimodal.compression.tokens.choosing import cosine, spread_out


@dataclass
class DivPrune(Compressor):
    """Keep the most spread-out tokens."""

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        return Plan(most_diverse(1 - cosine(hidden), span.count))


def most_diverse(distance: Tensor, count: int) -> Tensor:
    """Max-min choice by distance [B, N, N] -> int64 [B, M], ascending."""
    itself = torch.eye(distance.shape[1], dtype=torch.bool, device=distance.device)
    lonely = distance.masked_fill(itself, torch.inf).amin(-1)  # [B, N], to the nearest neighbour
    return spread_out(distance, lonely.argmax(-1), count, torch.minimum)

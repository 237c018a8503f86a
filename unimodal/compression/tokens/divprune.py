"""DivPrune (arXiv 2503.02175): keep the tokens that are most spread out, by greedy max-min cosine distance.

The first is the token with the largest distance to its nearest neighbour. Each next one is the token whose distance to
the nearest chosen token is largest (a 2-approximation of the max-min diversity problem).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unimodal.compression.method import Compressor
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.choosing import choose_spread_out, compute_cosines


@dataclass
class DivPrune(Compressor):
    """Keep the tokens that are most spread out (DivPrune, arXiv 2503.02175).

    hidden [B, N, D] → `span.count` tokens by greedy max-min cosine distance. No settings of its own; raises ValueError
    for what `Method` refuses.
    """

    paper: ClassVar[str] = "DivPrune, arXiv 2503.02175"

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        return Plan(choose_most_diverse(1 - compute_cosines(hidden), span.count))


def choose_most_diverse(distance: Tensor, count: int) -> Tensor:
    """Max-min choice of M = `count` tokens by distance [B, N, N], int64 [B, M], ascending."""
    itself = torch.eye(distance.shape[1], dtype=torch.bool, device=distance.device)
    lonely = distance.masked_fill(itself, torch.inf).amin(-1)  # [B, N], to the nearest neighbour
    return choose_spread_out(distance, lonely.argmax(-1), count, torch.minimum)

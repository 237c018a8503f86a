"""Every n-th token: the simplest baseline."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unimodal.compression.method import Compressor
from unimodal.compression.plan import Plan, Span


@dataclass
class Stride(Compressor):
    """Keep tokens at even distances: a baseline.

    hidden [B, N, D] → `span.count` tokens. No settings of its own; raises ValueError for what `Method` refuses.
    """

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        return Plan(choose_evenly(len(span), span.count, hidden))


def choose_evenly(num: int, count: int, hidden: Tensor) -> Tensor:
    """M = `count` of N = `num` places at even distances, for every row of hidden [B, …]: int64 [B, M]."""
    at = ((torch.arange(count, device=hidden.device) + 0.5) * num / count).long()
    return at.expand(len(hidden), -1)

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
        at = ((torch.arange(span.count, device=hidden.device) + 0.5) * len(span) / span.count).long()
        return Plan(at.expand(len(hidden), -1))

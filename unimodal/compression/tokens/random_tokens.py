"""Random pruning: the baseline that many published methods lose to.

The draw of a span depends on the seed and on its codes, so that a span is pruned alike in whatever batch it comes.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from unimodal.compression.method import Compressor
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.choosing import choose_best


@dataclass
class RandomTokens(Compressor):
    """Keep random tokens, in their order: a baseline.

    hidden [B, N, D] → `span.count` tokens. seed: of the draw. Raises ValueError for what `Method` refuses.
    """

    seed: int = 0

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        draws = []
        for row in span.ids.cpu().numpy():
            generator = torch.Generator().manual_seed((zlib.crc32(row.tobytes()) << 16) + self.seed)
            draws.append(torch.rand(len(row), generator=generator))
        return Plan(choose_best(torch.stack(draws).to(hidden.device), span.count))

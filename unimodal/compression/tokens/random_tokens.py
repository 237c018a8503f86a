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
        return Plan(choose_best(draw_uniform(span.ids, self.seed), span.count))


def draw_uniform(ids: Tensor, seed: int) -> Tensor:
    """A number in [0, 1) for every token, float32 [B, N], by the seed and the codes int64 [B, N] of its span."""
    draws = []
    for row in ids.cpu().numpy():
        generator = torch.Generator().manual_seed((zlib.crc32(row.tobytes()) << 16) + seed)
        draws.append(torch.rand(len(row), generator=generator))
    return torch.stack(draws).to(ids.device)

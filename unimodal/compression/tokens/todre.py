"""ToDRE (arXiv 2505.18757): diversity first, then no visual tokens at all.

Before the decoder, greedy max-sum diversification keeps tokens whose summed cosine distance to the chosen is largest.
Late in the decoder the words have taken up what they need ("information migration"): from `drop_at` of the depth on,
a span goes as a whole as soon as the last token's attention to it has fallen below `relevance`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unimodal.compression.method import Compressor, Plan, Span, share
from unimodal.compression.tokens.choosing import cosine, spread_out


@dataclass
class ToDRE(Compressor):
    """drop_at: share of the depth. relevance: attention in [0, 1]; 1 always drops at that depth, 0 never."""

    drop_at: float = 0.75
    relevance: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("drop_at", self.drop_at), ("relevance", self.relevance)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; give a number between 0 and 1")

    def late(self, num_layers: int) -> range:
        """Layers before which a span may go as a whole; none if everything is to be kept."""
        first = max(1, min(round(self.drop_at * num_layers), num_layers - 1))
        return range(first, num_layers if self.keep < 1 and self.relevance > 0 else first)

    def layers(self, num_layers: int) -> tuple[int, ...]:
        return (0, *self.late(num_layers))

    def watches(self, num_layers: int) -> tuple[int, ...]:
        return tuple(layer - 1 for layer in self.late(num_layers)) if self.relevance < 1 else ()

    def counts(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        return [self._count(span) for span in spans]

    def _count(self, span: Span) -> int:
        if span.layer == 0:
            return share(self.keep, span.original)
        if self.relevance < 1 and float(span.received("last").sum()) >= self.relevance:
            return len(span)
        return 0

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        if span.count == 0:
            return Plan(torch.zeros(len(hidden), 0, dtype=torch.int64, device=hidden.device))
        distance = 1 - cosine(hidden)
        return Plan(spread_out(distance, distance.sum(-1).argmax(-1), span.count, torch.add))

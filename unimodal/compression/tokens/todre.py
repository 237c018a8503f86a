"""ToDRE (arXiv 2505.18757): diversity first, then no visual tokens once the question has no use for them.

Before the decoder, tokens are chosen one by one: always the one whose summed cosine distance to the chosen is largest
(max-sum diversification). Late in the decoder the words have taken up what they need ("information migration"): from
`drop_at` of the depth on, a span goes as a whole as soon as the words behind it pay it less attention, as a mean over
words and heads, than `relevance`. The authors have published no code; the depth and the threshold are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unimodal.compression.method import Compressor, check_share
from unimodal.compression.plan import Plan, Span, count_share
from unimodal.compression.tokens.choosing import choose_spread_out, compute_cosines


@dataclass
class ToDRE(Compressor):
    """Keep the most diverse tokens, and none of them late in the decoder (ToDRE, arXiv 2505.18757).

    hidden [B, N, D] → `span.count` tokens by greedy max-sum cosine distance; later all N or none.
    drop_at: the share of the layers from which on spans may go, in [0, 1]. relevance: the attention of the words to a
    span, in [0, 1], below which it goes; 1 drops every span at `drop_at` unseen, 0 drops none.
    Raises ValueError for a share outside [0, 1], on entering for a model of too few layers, and for what `Method`
    refuses.
    """

    paper: ClassVar[str] = "ToDRE, arXiv 2505.18757"
    judges_rows: ClassVar[bool] = True

    drop_at: float = 0.75
    relevance: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("drop_at", self.drop_at)
        check_share("relevance", self.relevance)

    def find_late_layers(self, num_layers: int) -> range:
        """The layers before which a span may go as a whole; none of them if everything is kept."""
        first = max(1, min(round(self.drop_at * num_layers), num_layers - 1))
        return range(first, num_layers if self.keep < 1 and self.relevance > 0 else first)

    def find_sites(self, num_layers: int) -> tuple[int, ...]:
        return (0, *self.find_late_layers(num_layers))

    def find_watched_layers(self, num_layers: int) -> tuple[int, ...]:
        return tuple(layer - 1 for layer in self.find_late_layers(num_layers)) if self.relevance < 1 else ()

    def count_kept(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        return [self._count(span) for span in spans]

    def _count(self, span: Span) -> int:
        if span.layer == 0:
            return count_share(self.keep, span.original)
        if self.relevance < 1 and float(span.measure_attention("after").sum()) >= self.relevance:
            return len(span)
        return 0

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        if span.count == 0:
            return Plan(torch.zeros(len(hidden), 0, dtype=torch.int64, device=hidden.device))
        distance = 1 - compute_cosines(hidden)
        return Plan(choose_spread_out(distance, distance.sum(-1).argmax(-1), span.count, torch.add))

"""Average pooling: every window of neighbours becomes its mean, and its size counts in the attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unimodal.compression.method import Compressor
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.grids import average_line, map_runs


@dataclass
class Pooling(Compressor):
    """Average tokens over disjoint windows, squares of a raster or stretches of a line: a baseline.

    hidden [B, N, D] → `span.count` means with their sizes. No settings of its own; raises ValueError for what `Method`
    refuses.
    """

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        return pool_span(hidden, span, span.count)


def pool_span(hidden: Tensor, span: Span, count: int) -> Plan:
    """The plan that averages the tokens [B, N, D] of each span over `count` windows, weighted by the tokens' sizes."""
    matrix, middle = map_runs(span.segments, count, span.modality != "audio", average_line)
    inside = (matrix > 0).to(span.sizes)[None] * span.sizes[:, None]  # [B, M, N]
    sizes = inside.sum(-1)
    index = middle.to(hidden.device).expand(len(hidden), -1)
    return Plan(index, inside / sizes[..., None], sizes=sizes)

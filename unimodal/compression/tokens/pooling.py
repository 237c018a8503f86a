"""Average pooling: every window of neighbours becomes its mean, with the window's size in the attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unimodal.compression.method import Compressor, Plan, Span
from unimodal.compression.tokens.grids import averaging, over_runs


@dataclass
class Pooling(Compressor):
    """Average tokens over disjoint windows: squares of a raster, stretches of a line."""

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        return pooled(hidden, span, span.count)


def pooled(hidden: Tensor, span: Span, count: int) -> Plan:
    """The plan that averages a span's tokens [B, N, D] over `count` windows, weighted by their sizes."""
    matrix, middle = over_runs(span.segments, count, span.modality != "audio", averaging)
    inside = (matrix > 0).to(span.sizes)[None] * span.sizes[:, None]  # [B, M, N]
    sizes = inside.sum(-1)
    index = middle.to(hidden.device).expand(len(hidden), -1)
    return Plan(index, inside / sizes[..., None], sizes=sizes)

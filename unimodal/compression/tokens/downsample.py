"""Downsampling: the span at a lower resolution, by linear interpolation; the baseline that beats many methods.

A picture of half the side has a quarter of the tokens, and is not a sum of them: no sizes enter the attention.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unimodal.compression.method import Compressor
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.grids import interpolate_line, map_runs


@dataclass
class Downsample(Compressor):
    """Resample the raster, or the line in time, at fewer points by linear interpolation: a baseline.

    hidden [B, N, D] → `span.count` interpolated states, without sizes. No settings of its own; raises ValueError for
    what `Method` refuses.
    """

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        matrix, middle = map_runs(span.segments, span.count, span.modality != "audio", interpolate_line)
        matrix = matrix.to(hidden).expand(len(hidden), -1, -1)
        return Plan(middle.to(hidden.device).expand(len(hidden), -1), matrix)

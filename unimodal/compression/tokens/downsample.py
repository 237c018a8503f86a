"""Downsampling: the span at a lower resolution, by linear interpolation; the baseline that beats many methods.

A picture of half the side has a quarter of the tokens, and is not a sum of them: no sizes enter the attention.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unimodal.compression.method import Compressor, Plan, Span
from unimodal.compression.tokens.grids import interpolating, over_runs


@dataclass
class Downsample(Compressor):
    """Resample the raster, or the line in time, at fewer points."""

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        matrix, middle = over_runs(span.segments, span.count, span.modality != "audio", interpolating)
        matrix = matrix.to(hidden).expand(len(hidden), -1, -1)
        return Plan(middle.to(hidden.device).expand(len(hidden), -1), matrix)

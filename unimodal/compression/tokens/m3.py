"""Matryoshka multimodal models (M3, arXiv 2405.17430): nested average pooling, the scale chosen at inference.

Every scale averages neighbours of the scale before: 2×2 on a raster, pairs on a line. A model that is trained on the
mean of its losses at several scales (`matryoshka_loss`) serves all of them; used without, it is pooling at a few fixed
lengths. The scale is the finest with no more tokens than `keep` allows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unimodal.compression.method import Compressor, Plan, Span
from unimodal.compression.tokens.choosing import merged_into
from unimodal.compression.tokens.grids import raster
from unimodal.vocabulary import Vocabulary

SCALES = (1.0, 0.5, 0.25, 0.125)


@dataclass
class M3(Compressor):
    """Average tokens at the finest scale that keeps at most `keep` of them."""

    def counts(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        return [int(self._windows(span)[-1]) + 1 for span in spans]

    def _windows(self, span: Span) -> Tensor:
        is_raster = span.modality != "audio" and any(map(raster, span.segments))
        scale = 0
        while True:
            windows = nested_windows(span.segments, scale, is_raster)
            count = int(windows[-1]) + 1
            if count <= max(self.keep * span.original, len(span.segments)):
                return windows
            scale += 1

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        windows = self._windows(span)
        merge, sizes = merged_into(windows.to(hidden.device).expand(len(hidden), -1), span.count, span.sizes)
        first = torch.stack([(windows == w).nonzero()[0, 0] for w in range(span.count)])
        return Plan(first.to(hidden.device).expand(len(hidden), -1), merge, sizes=sizes)


def nested_windows(segments: Sequence[int], scale: int, is_raster: bool) -> Tensor:
    """The window of every token, int64 [N]: 2^scale squares of a raster; of a line beside one 4^scale, else 2^scale."""
    parts, offset = [], 0
    for length in segments:
        sides = raster(length) if is_raster else None
        place = torch.arange(length)
        if sides:
            row, column = (place // sides[1]) >> scale, (place % sides[1]) >> scale
            wide = ((sides[1] - 1) >> scale) + 1
            part = row * wide + column
        else:
            part = place >> (2 * scale if is_raster else scale)
        parts.append(part + offset)
        offset += int(part.max()) + 1
    return torch.cat(parts)


def matryoshka_loss(
    model: Any, vocabulary: Vocabulary, loss: Callable[[], Tensor], scales: Sequence[float] = SCALES
) -> Tensor:
    """The mean of a loss over the scales: what M3 trains on. `loss` runs the model once each time it is called."""
    losses = []
    for keep in scales:
        with M3(keep)(model, vocabulary):
            losses.append(loss())
    return torch.stack(losses).mean()

"""Matryoshka multimodal models (M3, arXiv 2405.17430): nested average pooling, the scale chosen at inference.

Every scale averages neighbours of the scale before: 2×2 on a raster, pairs on a line. A model that is trained on the
mean of its losses at several scales (`compute_matryoshka_loss`) serves all of them; a model that is not reads pooled
tokens at a few fixed lengths. The scale is the finest that has no more tokens than `keep` allows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unimodal.compression.method import Compressor
from unimodal.compression.plan import Plan, Span
from unimodal.compression.running.session import CompressionTarget
from unimodal.compression.tokens.choosing import merge_clusters
from unimodal.compression.tokens.grids import find_raster
from unimodal.vocabulary import Vocabulary

SCALES = (1.0, 0.5, 0.25, 0.125)


@dataclass
class M3(Compressor):
    """Average tokens at the finest of the nested scales that keeps at most `keep` of them (M3, arXiv 2405.17430).

    hidden [B, N, D] → the mean of every window; at least one a run of codes. counts_sizes: log(size) is added to the
    attention over merged tokens, which the paper does not do. Raises ValueError for what `Method` refuses.
    """

    paper: ClassVar[str] = "Matryoshka multimodal models (M3), arXiv 2405.17430"
    judges_rows: ClassVar[bool] = True

    counts_sizes: bool = False

    def count_kept(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        return [int(self._choose_windows(span)[-1]) + 1 for span in spans]

    def _choose_windows(self, span: Span) -> Tensor:
        is_raster = span.modality != "audio" and any(map(find_raster, span.segments))
        scale = 0
        while True:
            windows = number_windows(span.segments, scale, is_raster)
            count = int(windows[-1]) + 1
            if count <= max(self.keep * span.original, len(span.segments)):
                return windows
            scale += 1

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        windows = self._choose_windows(span)
        merge, sizes = merge_clusters(windows.to(hidden.device).expand(len(hidden), -1), span.count, span.sizes)
        first = torch.stack([(windows == w).nonzero()[0, 0] for w in range(span.count)])
        index = first.to(hidden.device).expand(len(hidden), -1)
        return Plan(index, merge, sizes=sizes if self.counts_sizes else None)


def number_windows(segments: Sequence[int], scale: int, is_raster: bool) -> Tensor:
    """The window of every token, int64 [N], counted from 0.

    A window is a square of 2^scale by 2^scale on a raster. On a line it is a stretch of 2^scale tokens, or of 4^scale
    where another run of the span is a raster (`is_raster`), so that both shrink alike.
    """
    parts, offset = [], 0
    for length in segments:
        sides = find_raster(length) if is_raster else None
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


def compute_matryoshka_loss(
    model: CompressionTarget, vocabulary: Vocabulary, loss: Callable[[], Tensor], scales: Sequence[float] = SCALES
) -> Tensor:
    """What M3 trains on: the mean of a loss over the scales. `loss` runs the model once each time it is called."""
    losses = []
    for keep in scales:
        with M3(keep)(model, vocabulary):
            losses.append(loss())
    return torch.stack(losses).mean()

"""GlobalCom² (arXiv 2501.05179): the thumbnail says how much of every crop to keep, and helps to say what.

A large picture comes as a thumbnail and crops in raster order: here, the first picture of a row and those behind it.
Of the thumbnail's scores (the attention of its summary), each crop's share p = softmax(sum over its region / 10) moves
its ratio to base · (1 + p − mean p), at most 1. A crop's token is judged by its own summary's attention and by the
thumbnail's at its place, each scaled to length 1. A single picture is pruned by its own summary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.compression.method import Compressor, Plan, Span, share
from unimodal.compression.tokens.choosing import best
from unimodal.compression.tokens.grids import cells, raster

TEMPERATURE = 10.0


@dataclass
class GlobalCom(Compressor):
    """layer: the site; the attention of the layer before it is used."""

    layer: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer < 1:
            raise ValueError(f"layer is {self.layer}; the attention before it is needed, so at least 1")

    def layers(self, num_layers: int) -> tuple[int, ...]:
        return (self.layer,)

    def watches(self, num_layers: int) -> tuple[int, ...]:
        return (self.layers(num_layers)[0] - 1,)

    def counts(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        crops = _crops(spans)
        counts = {id(span): share(self.keep, span.original) for span in spans}
        if crops:
            sums = torch.stack([part.sum() for part in regions(_thumbnail(spans).received("summary")[0], len(crops))])
            ratios = crop_ratios(self.keep, sums)
            counts.update({id(span): share(float(r), span.original) for span, r in zip(crops, ratios, strict=True)})
        return [counts[id(span)] for span in spans]

    def hints(self, spans: Sequence[Span]) -> list[Tensor]:
        """The thumbnail's scores, spread over every crop's tokens; nothing for other spans."""
        crops = _crops(spans)
        hints = {id(span): torch.zeros_like(span.sizes) for span in spans}
        if crops:
            parts = regions(_thumbnail(spans).received("summary")[0], len(crops))
            hints.update({id(span): _stretched(p, len(span)) for span, p in zip(crops, parts, strict=True)})
        return [hints[id(span)] for span in spans]

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        scores = F.normalize(span.received("summary"), dim=-1)
        if span.hint is not None:
            scores = scores + F.normalize(span.hint, dim=-1)
        return Plan(best(scores, span.count))


def crop_ratios(base: float, sums: Tensor) -> Tensor:
    """base · (1 + p − mean p) with p = softmax(sums [C] / 10), at most 1."""
    p = (sums / TEMPERATURE).softmax(0)
    return (base * (1 + p - p.mean())).clamp(max=1.0)


def regions(scores: Tensor, num: int) -> list[Tensor]:
    """The parts of a thumbnail's scores [N] that lie under each of `num` crops: blocks of its raster, or stretches."""
    sides = raster(len(scores))
    grid = cells(num, sides) if sides else None
    if sides is None or grid is None:
        return list(scores.tensor_split(num))
    rows = scores.view(sides).tensor_split(grid[0], 0)
    return [block for row in rows for block in row.tensor_split(grid[1], 1)]


def _thumbnail(spans: Sequence[Span]) -> Span:
    return next(span for span in spans if span.modality == "image")


def _crops(spans: Sequence[Span]) -> list[Span]:
    return [span for span in spans if span.modality == "image"][1:]


def _stretched(part: Tensor, num: int) -> Tensor:
    """Scores of a region, [n] or [h, w] -> [1, num], each token that of the place it lies at."""
    sides = raster(num)
    if part.ndim == 2 and sides:
        return F.interpolate(part[None, None], size=sides, mode="nearest").flatten(1)
    return F.interpolate(part.flatten()[None, None], size=num, mode="nearest").flatten(1)

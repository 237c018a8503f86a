"""GlobalCom² (arXiv 2501.05179): the thumbnail decides how much of every crop to keep, and helps to choose what.

A large picture comes as a thumbnail and crops in raster order. `grid` declares it: (rows, columns) of crops behind
every thumbnail. Without it no picture is a crop, and each is pruned by its own summary. The thumbnail's scores are the
attention of its summary token to its tokens. A crop keeps the ratio keep · (1 + p − mean p), at most 1, with p =
softmax(sum of the scores over the crop's region / 10). A crop's tokens are judged by the attention of the crop's own
summary plus the thumbnail's scores at their places, each scaled to length 1: the thumbnail's raster is interpolated
bilinearly to that of all crops together. The authors take the scores of the picture encoder's CLS token; codes have
none, and the token that closes the span takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.compression.method import Compressor
from unimodal.compression.plan import Plan, Span, count_share
from unimodal.compression.tokens.choosing import choose_best
from unimodal.compression.tokens.grids import find_raster

TEMPERATURE = 10.0


@dataclass
class GlobalCom(Compressor):
    """Keep more of the crops that the thumbnail's summary attends to (GlobalCom², arXiv 2501.05179).

    hidden [B, N, D] → `span.count` tokens by the summary's attention in the layer before the site.
    layer: the site. grid: rows and columns of the crops that follow every thumbnail; None: there are no crops. Raises
    ValueError for a layer below 1 and for a grid without crops, on entering for a layer that the model lacks, and for
    what `Method` refuses.
    """

    paper: ClassVar[str] = "GlobalCom², arXiv 2501.05179"
    judges_rows: ClassVar[bool] = True

    layer: int = 1
    grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer < 1:
            raise ValueError(f"layer is {self.layer}; the attention before it is needed, so at least 1")
        if self.grid is not None and min(self.grid) < 1:
            raise ValueError(f"grid is {self.grid}; give rows and columns of crops, at least 1 each")

    def find_sites(self, num_layers: int) -> tuple[int, ...]:
        return (self.layer,)

    def find_watched_layers(self, num_layers: int) -> tuple[int, ...]:
        return (self.find_sites(num_layers)[0] - 1,)

    def count_kept(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        counts = [count_share(self.keep, span.original) for span in spans]
        for thumbnail, crops in find_crops(spans, self.grid):
            assert self.grid is not None
            sums = sum_regions(spans[thumbnail].measure_attention("summary")[0], self.grid)
            for place, ratio in zip(crops, compute_crop_ratios(self.keep, sums), strict=True):
                counts[place] = count_share(float(ratio), spans[place].original)
        return counts

    def give_hints(self, spans: Sequence[Span]) -> list[Tensor]:
        """The thumbnail's scores at the tokens of every crop; zeros for other spans."""
        hints = [torch.zeros_like(span.sizes) for span in spans]
        for thumbnail, crops in find_crops(spans, self.grid):
            assert self.grid is not None
            scores = spans[thumbnail].measure_attention("summary")[0]
            parts = spread_scores(scores, self.grid, [len(spans[place]) for place in crops])
            for place, part in zip(crops, parts, strict=True):
                hints[place] = part[None]
        return hints

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        scores = F.normalize(span.measure_attention("summary"), dim=-1)
        if span.hint is not None:
            scores = scores + F.normalize(span.hint, dim=-1)
        return Plan(choose_best(scores, span.count))


def compute_crop_ratios(base: float, sums: Tensor) -> Tensor:
    """base · (1 + p − mean p), at most 1, with p = softmax(sums [C] / 10): the ratio [C] of each of C crops."""
    p = (sums / TEMPERATURE).softmax(0)
    return (base * (1 + p - p.mean())).clamp(max=1.0)


def find_crops(spans: Sequence[Span], grid: tuple[int, int] | None) -> list[tuple[int, list[int]]]:
    """The place of every thumbnail among the spans, and those of its crops; pictures left over are no crops."""
    if grid is None:
        return []
    pictures = [place for place, span in enumerate(spans) if span.modality == "image"]
    size = 1 + grid[0] * grid[1]
    whole = range(0, len(pictures) - size + 1, size)
    return [(pictures[start], pictures[start + 1 : start + size]) for start in whole]


def sum_regions(scores: Tensor, grid: tuple[int, int]) -> Tensor:
    """The sums [C] of a thumbnail's scores [N] over the region of each crop; a line is cut into stretches."""
    sides = find_raster(len(scores)) or (1, len(scores))
    cells = grid if sides[0] > 1 else (1, grid[0] * grid[1])
    row = (torch.arange(sides[0]) // max(sides[0] // cells[0], 1)).clamp(max=cells[0] - 1)
    column = (torch.arange(sides[1]) // max(sides[1] // cells[1], 1)).clamp(max=cells[1] - 1)
    cell = (row[:, None] * cells[1] + column).flatten().to(scores.device)
    return scores.new_zeros(grid[0] * grid[1]).index_add(0, cell, scores)


def spread_scores(scores: Tensor, grid: tuple[int, int], lengths: Sequence[int]) -> list[Tensor]:
    """A thumbnail's scores [N] at the tokens of every crop, [length] each, interpolated bilinearly."""
    sides = [find_raster(num) for num in (len(scores), *lengths)]
    whole, crop = sides[0], sides[1]
    if whole is None or crop is None or any(side != crop for side in sides[1:]):
        line = F.interpolate(scores[None, None], size=sum(lengths), mode="linear", align_corners=False)[0, 0]
        return list(line.split(list(lengths)))
    high, wide = grid[0] * crop[0], grid[1] * crop[1]
    raster = F.interpolate(scores.view(1, 1, *whole), size=(high, wide), mode="bilinear", align_corners=False)[0, 0]
    return [block.flatten() for row in raster.split(crop[0], 0) for block in row.split(crop[1], 1)]

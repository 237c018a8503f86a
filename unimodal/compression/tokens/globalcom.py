"""GlobalCom² (arXiv 2501.05179): the thumbnail decides how much of every crop to keep, and helps to choose what.

A large picture comes as a thumbnail and crops in raster order: here, the first picture of a row and those behind it.
The thumbnail's scores are the attention of its summary token to its tokens. A crop keeps the ratio
keep · (1 + p − mean p), at most 1, with p = softmax(sum of the scores over the crop's region / 10). A crop's tokens are
judged by the attention of the crop's own summary plus the thumbnail's scores at their places, each scaled to length 1.
A single picture is pruned by its own summary.
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
from unimodal.compression.tokens.grids import find_grid, find_raster

TEMPERATURE = 10.0


@dataclass
class GlobalCom(Compressor):
    """Keep more of the crops that the thumbnail's summary attends to (GlobalCom², arXiv 2501.05179).

    hidden [B, N, D] → `span.count` tokens by the summary's attention in the layer before the site.
    layer: the site. Raises ValueError for a layer below 1, on entering for one that the model lacks, and for what
    `Method` refuses.
    """

    paper: ClassVar[str] = "GlobalCom², arXiv 2501.05179"
    judges_rows: ClassVar[bool] = True

    layer: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer < 1:
            raise ValueError(f"layer is {self.layer}; the attention before it is needed, so at least 1")

    def find_sites(self, num_layers: int) -> tuple[int, ...]:
        return (self.layer,)

    def find_watched_layers(self, num_layers: int) -> tuple[int, ...]:
        return (self.find_sites(num_layers)[0] - 1,)

    def count_kept(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        counts = [count_share(self.keep, span.original) for span in spans]
        crops = _find_crops(spans)
        if crops:
            ratios = compute_crop_ratios(self.keep, torch.stack([part.sum() for part in _score_regions(spans, crops)]))
            for place, ratio in zip(crops, ratios, strict=True):
                counts[place] = count_share(float(ratio), spans[place].original)
        return counts

    def give_hints(self, spans: Sequence[Span]) -> list[Tensor]:
        """The thumbnail's scores, spread over the tokens of every crop; zeros for other spans."""
        hints = [torch.zeros_like(span.sizes) for span in spans]
        crops = _find_crops(spans)
        if crops:
            for place, part in zip(crops, _score_regions(spans, crops), strict=True):
                hints[place] = _stretch(part, len(spans[place]))
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


def split_regions(scores: Tensor, num: int) -> list[Tensor]:
    """The parts of a thumbnail's scores [N] that lie under each of `num` crops: blocks of its raster, or stretches."""
    sides = find_raster(len(scores))
    grid = find_grid(num, sides) if sides else None
    if sides is None or grid is None:
        return list(scores.tensor_split(num))
    rows = scores.view(sides).tensor_split(grid[0], 0)
    return [block for row in rows for block in row.tensor_split(grid[1], 1)]


def _find_crops(spans: Sequence[Span]) -> list[int]:
    """The places of the pictures behind the first one."""
    return [place for place, span in enumerate(spans) if span.modality == "image"][1:]


def _score_regions(spans: Sequence[Span], crops: Sequence[int]) -> list[Tensor]:
    """The scores of the first picture, the thumbnail, in the part that lies under each crop."""
    thumbnail = next(span for span in spans if span.modality == "image")
    return split_regions(thumbnail.measure_attention("summary")[0], len(crops))


def _stretch(part: Tensor, num: int) -> Tensor:
    """Scores of a region, [n] or [h, w] → [1, num]: each token gets the score of the place where it lies."""
    sides = find_raster(num)
    if part.ndim == 2 and sides:
        return F.interpolate(part[None, None], size=sides, mode="nearest").flatten(1)
    return F.interpolate(part.flatten()[None, None], size=num, mode="nearest").flatten(1)

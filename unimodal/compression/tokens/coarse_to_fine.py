"""Coarse-to-fine pruning guided by the words (arXiv 2503.07588), for large pictures that come as a pyramid.

A pyramid is the whole picture small, then cut into tiles, then into more and smaller ones. The words say which of the
coarse tokens matter, and only the tiles of the next level where one of those lies are read; so on down to the finest
level, whose tokens are pruned by the same score. The whole picture stays, pruned too; levels in between are only looked
at. `levels` declares the tiles of the levels behind the whole: ((2, 2), (4, 4)) are 1 + 4 + 16 pictures. Without it
every picture is pruned by the words. The authors train a small copy of the decoder's first layers to say where its deep
layers look, and encode a tile only when it was chosen; here the decoder's own layer before the site says so, and all
tiles have gone through the layers before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unimodal.compression.method import Compressor, check_share
from unimodal.compression.plan import Plan, Span, count_share
from unimodal.compression.tokens.choosing import choose_best
from unimodal.compression.tokens.grids import find_raster


@dataclass
class CoarseToFine(Compressor):
    """Read only tiles of a pyramid where the words look on the level above (coarse-to-fine pruning, arXiv 2503.07588).

    hidden [B, N, D] → `span.count` tokens by the words' head-mean attention in the layer before the site. layer: the
    site; by default 2, in a shallower model the last layer. levels: (rows, columns) of tiles of each level behind the
    whole picture, in raster order. chosen: the share of a level's tokens, in [0, 1], that choose tiles of the next.
    Raises ValueError for a layer below 1, a level without tiles and a share outside [0, 1], on entering for a layer
    that the model lacks, and for what `Method` refuses.
    """

    paper: ClassVar[str] = "Coarse-to-fine token pruning, arXiv 2503.07588"
    judges_rows: ClassVar[bool] = True

    layer: int | None = None
    levels: tuple[tuple[int, int], ...] = ()
    chosen: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("chosen", self.chosen)
        if self.layer is not None and self.layer < 1:
            raise ValueError(f"layer is {self.layer}; the attention before it is needed, so at least 1")
        if any(min(level) < 1 for level in self.levels):
            raise ValueError(f"levels are {self.levels}; give rows and columns of tiles, at least 1 each")

    def find_sites(self, num_layers: int) -> tuple[int, ...]:
        return (max(1, min(2, num_layers - 1)) if self.layer is None else self.layer,)

    def find_watched_layers(self, num_layers: int) -> tuple[int, ...]:
        return (self.find_sites(num_layers)[0] - 1,)

    def count_kept(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        counts = [count_share(self.keep, span.original) for span in spans]
        if self.keep == 1:
            return counts
        pictures = [place for place, span in enumerate(spans) if span.modality == "image"]
        size = 1 + sum(rows * columns for rows, columns in self.levels)
        for start in range(0, len(pictures) - size + 1, size) if self.levels else ():
            pyramid = pictures[start : start + size]
            read = set(self.choose_tiles([spans[place] for place in pyramid]))
            for number in range(1, size):
                counts[pyramid[number]] = counts[pyramid[number]] if number in read else 0
        return counts

    def choose_tiles(self, pyramid: Sequence[Span]) -> list[int]:
        """The numbers, in a pyramid, of the tiles of the finest level that are read."""
        first, tiles, grid = 0, [0], (1, 1)
        for level in self.levels:
            scores = [pyramid[tile].measure_attention("after")[0] for tile in tiles]
            best = torch.cat(scores).argsort(descending=True, stable=True)
            best = best[: count_share(self.chosen, len(best))]
            owner = torch.cat([torch.full((len(each),), tile) for tile, each in zip(tiles, scores, strict=True)])
            inside = torch.cat([torch.arange(len(each)) for each in scores])
            found = set()
            for tile, token in zip(owner[best.cpu()].tolist(), inside[best.cpu()].tolist(), strict=True):
                found |= find_tiles(tile - first, token, len(pyramid[tile]), grid, level)
            first += grid[0] * grid[1]
            tiles, grid = sorted(first + tile for tile in found), level
        return tiles

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        return Plan(choose_best(span.measure_attention("after"), span.count))


def find_tiles(tile: int, token: int, num: int, grid: tuple[int, int], finer: tuple[int, int]) -> set[int]:
    """The tiles of a finer grid (rows, columns) that a token, one of `num` of a tile of `grid`, overlaps."""
    sides = find_raster(num) or (1, num)
    row, column = divmod(tile, grid[1])
    down, right = divmod(token, sides[1])
    edges = []
    for at, inner, side, count, fine in (
        (row, down, sides[0], grid[0], finer[0]), (column, right, sides[1], grid[1], finer[1]),
    ):  # fmt: skip
        cell = at * side + inner  # of side * count cells along this axis
        edges.append(range(cell * fine // (side * count), ((cell + 1) * fine - 1) // (side * count) + 1))
    return {down * finer[1] + right for down in edges[0] for right in edges[1]}

"""Resamplers: any number of feature vectors → a set number of tokens, by queries that read them.

TiTok (arXiv 2406.07550) concatenates learned queries to the patches; Q-Former and Perceiver (arXiv 2301.12597,
2103.03206) let them cross-attend; GigaTok (arXiv 2504.08736) starts them as averages of the map. A causal mask orders
them (FlexTok, arXiv 2502.13967), one by scales orders them coarse to fine (HieraTok).

Shapes: B batch, F features, N queries, D width, h/w rows and columns of the feature map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from unimodal.tokenizers.parts.mixers.ponet import PoNetBlock
from unimodal.tokenizers.parts.trunks.vit import GridSize, VitBlock

QueryReading = Literal["concatenated", "cross"]
QueryStart = Literal["learned", "pooled", "noise"]
QueryMask = Literal["full", "causal", "scales"]


def build_query_mask(kind: QueryMask, num_queries: int, scales: Sequence[int] = ()) -> Tensor | None:
    """Which query sees which, bool [N, N]; None where all see all.

    "causal": the earlier ones and itself. "scales": those of its own and of coarser scales; scales are how many
    queries each has, coarse to fine. ValueError for scales that do not add up to the queries.
    """
    if kind == "full":
        return None
    if kind == "causal":
        return torch.ones(num_queries, num_queries, dtype=torch.bool).tril()
    if sum(scales) != num_queries:
        raise ValueError(f"scales of {list(scales)} are {sum(scales)} queries; there are {num_queries}")
    level = torch.tensor([index for index, count in enumerate(scales) for _ in range(count)])
    return level[:, None] >= level


def pool_scales(features: Tensor, grid: GridSize, scales: Sequence[GridSize]) -> Tensor:
    """Averages of a feature map [B, h·w, D] over the cells of each scale (rows, columns), each in raster order,
    coarse to fine: [B, N, D]."""
    square = features.transpose(1, 2).unflatten(-1, grid)
    return torch.cat([adaptive_avg_pool2d(square, scale).flatten(2).transpose(1, 2) for scale in scales], 1)


class Resampler(nn.Module):
    """Queries that read features through transformer blocks.

    reading: "concatenated": features and queries are one sequence, and with an ordered mask features do not see
    queries; "cross": queries alone attend among themselves and over the features.
    start: "learned" vectors; "pooled": averages of the feature map at `scales`, through a linear layer; "noise": normal
    noise, that of seed 0 outside training. To each start a learned position is added.
    mask: see `build_query_mask`; with "scales" the queries are grouped by `scales`, (rows, columns) each.
    copies: so many of the last learned queries stand a second time behind them, with positions of their own.
    segments: of features and queries together, to mix them by PoNet (arXiv 2110.02442) in place of attention; they are
    then concatenated, all see all, and none is padding.
    Raises ValueError for scales that do not add up to the queries, and for segments beside what needs attention.
    """

    def __init__(
        self,
        num_queries: int,
        width: int,
        num_layers: int,
        num_heads: int,
        reading: QueryReading = "concatenated",
        start: QueryStart = "learned",
        mask: QueryMask = "full",
        scales: Sequence[GridSize] = (),
        copies: int = 0,
        segments: Sequence[int] = (),
    ):
        super().__init__()
        if segments and (reading != "concatenated" or mask != "full"):
            raise ValueError(f"PoNet has no queries that are {reading} under a {mask} mask; choose attention")
        if copies and (start != "learned" or copies > num_queries // 2):
            raise ValueError(f"{copies} copies are no more than half of {num_queries} learned queries")
        self.num_queries, self.reading, self.start, self.scales = (
            num_queries,
            reading,
            start,
            tuple(scales),
        )
        self.copies = copies
        sizes = [rows * columns for rows, columns in scales]
        if start == "pooled" and sum(sizes) != num_queries:
            raise ValueError(f"scales of {sizes} are {sum(sizes)} queries; there are {num_queries}")
        scale = width**-0.5
        self.queries: nn.Parameter | None = None
        if start == "learned":
            self.queries = nn.Parameter(scale * torch.randn(num_queries - copies, width))
        self.project_pools = nn.Linear(width, width) if start == "pooled" else None
        self.positions = nn.Parameter(scale * torch.randn(num_queries, width))
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            PoNetBlock(width, num_heads, segments, 4 * width)
            if segments
            else VitBlock(width, num_heads, cross=reading == "cross")
            for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(width)
        self.mask: Tensor | None
        self.register_buffer("mask", build_query_mask(mask, num_queries, sizes), persistent=False)

    def start_queries(
        self, features: Tensor, grid: GridSize | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """The queries before they read, float [B, N, D]. grid: of the feature map, where they are pooled from it; the
        features before the map (a class token) are left out."""
        batch, _, width = features.shape
        if self.queries is not None:
            learned = torch.cat([self.queries, self.queries[-self.copies :]]) if self.copies else self.queries
            queries = learned.expand(batch, -1, -1)
        elif self.project_pools is not None:
            if grid is None:
                raise ValueError("queries that start as averages of a map need its grid of rows and columns")
            queries = self.project_pools(pool_scales(features[:, -grid[0] * grid[1] :], grid, self.scales))
        else:
            if not self.training:  # the same for every item, so that codes are
                generator = torch.Generator().manual_seed(0)
            items = batch if self.training else 1
            noise = torch.randn(items, self.num_queries, width, generator=generator)
            queries = noise.to(features).expand(batch, -1, -1)
        return queries + self.positions

    def forward(
        self,
        features: Tensor,
        features_mask: Tensor | None = None,
        grid: GridSize | None = None,
        generator: torch.Generator | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """features: float [B, F, D] → tokens float [B, N, D]. features_mask: bool [B, F], False where one is padding.
        grid and generator: see ``start_queries``; generator draws noise in training. kept: bool [B, N], False where no
        one reads a query's vectors; what it gives itself is then to be left out."""
        queries = self.start_queries(features, grid, generator)
        if self.reading == "cross":
            tokens, mask = self.norm_in(queries), self.mask
            if kept is not None:
                mask = kept[:, None, None] if mask is None else mask & kept[:, None, None]
            context_mask = None if features_mask is None else features_mask[:, None, None]
            for block in self.blocks:
                tokens = block(tokens, mask, context=features, context_mask=context_mask)
            return self.norm_out(tokens)
        num_features = features.shape[1]
        mask = self.join_masks(num_features, features_mask, kept)
        tokens = self.norm_in(torch.cat([features, queries], 1))
        for block in self.blocks:
            tokens = block(tokens, mask)
        return self.norm_out(tokens[:, num_features:])

    def join_masks(self, num_features: int, features_mask: Tensor | None, kept: Tensor | None = None) -> Tensor | None:
        """Who attends to whom in features and queries as one sequence, bool [F + N, F + N] or [B, 1, F + N, F + N]."""
        if self.mask is None and features_mask is None and kept is None:
            return None
        total = num_features + self.num_queries
        joined = torch.ones(total, total, dtype=torch.bool, device=self.positions.device)
        if self.mask is not None:
            joined[:num_features, num_features:] = False
            joined[num_features:, num_features:] = self.mask
        if features_mask is None and kept is None:
            return joined
        batch = len(features_mask) if features_mask is not None else len(kept) if kept is not None else 0
        seen = joined.new_ones(batch, total)
        if features_mask is not None:
            seen[:, :num_features] = features_mask
        if kept is not None:
            seen[:, num_features:] = kept
        return joined & seen[:, None, None]

"""Transformers between a map and tokens, as GigaTok has them (arXiv 2504.08736): DETR's layers (2005.12872).

A norm stands before the layer that embeds, positions are learned, and a convolution ends each. With the form "tokens"
a sequence of tokens reads the map, and positions of a map read the tokens; with the form "grid" the positions of the
map attend among themselves, and with "grid_twice" each layer attends over its own input once more, as DETR's layers
do over another's.

Shapes: B batch, Z channels of the map, h and w its sides, N tokens, D width.
"""

from __future__ import annotations

from math import log2
from typing import Literal

import torch
from torch import Tensor, nn

from unimodal.tokenizers.parts.resamplers import pool_scales
from unimodal.tokenizers.parts.trunks.blocks import TransformerSize
from unimodal.tokenizers.parts.trunks.vit import GridSize, VitBlock

TokenForm = Literal["tokens", "grid", "grid_twice"]


def list_pool_scales(num_tokens: int, grid: GridSize) -> list[GridSize]:
    """The grids that 1, 1, 2, 4, 8 … tokens are averages over, the columns doubled first. Raises ValueError for a
    number of tokens that is no power of 2, and for a map that does not divide into the finest grid."""
    levels = round(log2(num_tokens))
    if 2**levels != num_tokens:
        raise ValueError(f"{num_tokens} tokens are no power of 2, as averages of 1, 1, 2, 4, … cells are")
    scales = [(1, 1), *((2 ** (level // 2), 2 ** ((level + 1) // 2)) for level in range(levels))]
    if any(side % cells for side, cells in zip(grid, scales[-1], strict=True)):
        raise ValueError(f"a map of {grid[0]}×{grid[1]} does not divide into {scales[-1][0]}×{scales[-1][1]} averages")
    return scales


class MapTransformer(nn.Module):
    """What both directions share: norm and embedding in, positions of the map, layers, norm out."""

    def __init__(self, channels: int, size: TransformerSize, grid: GridSize, form: TokenForm):
        super().__init__()
        self.form, self.grid, width = form, grid, size.width
        self.norm_in = nn.LayerNorm(channels)
        self.embed = nn.Linear(channels, width)
        self.positions = nn.Parameter(width**-0.5 * torch.randn(grid[0] * grid[1], 1, width))
        self.layers = nn.ModuleList(
            VitBlock(width, size.num_heads, cross=form != "grid") for _ in range(size.num_layers)
        )
        self.norm_out = nn.LayerNorm(width)

    def attend_grid(self, layer: nn.Module, x: Tensor) -> Tensor:
        """One layer over the positions of the map, [B, h · w, D], of the forms that have them alone."""
        if self.form == "grid":
            return layer(x)
        positions = self.positions[:, 0]
        return layer(x, context=x, positions=positions, context_positions=positions)


class MapToTokens(MapTransformer):
    """A map [B, Z, h, w] → tokens [B, N, Z]; of a grid, N = h · w.

    Each token starts as an average of the map through a linear layer, of the grids of `list_pool_scales`.
    """

    def __init__(self, channels: int, size: TransformerSize, grid: GridSize, form: TokenForm, num_tokens: int):
        super().__init__(channels, size, grid, form)
        self.scales: list[GridSize] = []
        if form == "tokens":
            self.scales = list_pool_scales(num_tokens, grid)
            self.token_positions = nn.Parameter(size.width**-0.5 * torch.randn(num_tokens, 1, size.width))
            self.start = nn.Linear(size.width, size.width)
        self.conv_out = nn.Conv2d(size.width, channels, 1)

    def forward(self, maps: Tensor) -> Tensor:
        features, positions = self.embed(self.norm_in(maps.flatten(2).transpose(1, 2))), self.positions[:, 0]
        if self.form != "tokens":
            tokens = features + positions if self.form == "grid" else features
            for layer in self.layers:
                tokens = self.attend_grid(layer, tokens)
        else:
            tokens = self.start(pool_scales(features, self.grid, self.scales))
            for layer in self.layers:
                tokens = layer(
                    tokens, context=features, positions=self.token_positions[:, 0], context_positions=positions
                )
        return self.conv_out(self.norm_out(tokens).transpose(1, 2).unsqueeze(2))[:, :, 0].transpose(1, 2)


class TokensToMap(MapTransformer):
    """Tokens [B, N, Z] → a map [B, Z, h, w].

    Every position of the map starts as the first token. align_layer: after so many layers a head of three linear layers
    gives features of `align_width`, which training brings near those of a frozen network.
    """

    def __init__(
        self,
        channels: int,
        size: TransformerSize,
        grid: GridSize,
        form: TokenForm,
        num_tokens: int,
        align_layer: int | None = None,
        align_width: int = 768,
    ):
        super().__init__(channels, size, grid, form)
        width = size.width
        if form == "tokens":
            self.token_positions = nn.Parameter(width**-0.5 * torch.randn(num_tokens, 1, width))
        self.conv_out = nn.Conv2d(width, channels, 3, padding=1)
        self.align_layer = align_layer
        self.align: nn.Module | None = None
        if align_layer is not None:
            if not 1 <= align_layer <= size.num_layers:
                raise ValueError(f"align_layer {align_layer} is none of the decoder's {size.num_layers} layers")
            wide = 4 * width
            self.align = nn.Sequential(
                nn.Linear(width, wide), nn.SiLU(), nn.Linear(wide, wide), nn.SiLU(), nn.Linear(wide, align_width)
            )

    def forward(self, tokens: Tensor, aligns: bool = False) -> tuple[Tensor, Tensor | None]:
        """tokens: [B, N, Z] → (map [B, Z, h, w], features [B, h · w, align_width] if `aligns` and there is a head)."""
        features, positions = self.embed(self.norm_in(tokens)), self.positions[:, 0]
        x = features[:, :1].expand(-1, len(positions), -1) if self.form == "tokens" else features
        if self.form == "grid":
            x = x + positions
        aligned = None
        for number, layer in enumerate(self.layers, start=1):
            if self.form != "tokens":
                x = self.attend_grid(layer, x)
            else:
                x = layer(x, context=features, positions=positions, context_positions=self.token_positions[:, 0])
            if aligns and self.align is not None and number == self.align_layer:
                aligned = self.align(x)
        return self.conv_out(self.norm_out(x).transpose(1, 2).unflatten(2, self.grid)), aligned

"""PoolFormer (MetaFormer, arXiv 2111.11418): a transformer's block whose tokens are mixed by averaging neighbours.

The mixer is the average of a token's window less the token itself, for the residual way carries that already. It has no
weights, and its cost is linear in the tokens. Norms are over all tokens and channels of an item together, and each
residual way has a learned scale of every channel, as in the authors' code.

Shapes: B batch, N tokens of a grid in raster order, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, gelu


class PoolFormerBlock(nn.Module):
    """[B, N, D] → [B, N, D] over a grid of (rows, columns); a line is a grid of one row.

    inner: width of the feed-forward layer. window: odd side of the square that is averaged; cells outside the grid do
    not count. scale: at which both residual ways begin. ValueError for an even window.
    """

    def __init__(self, width: int, grid: tuple[int, int], inner: int, window: int = 3, scale: float = 1e-5):
        super().__init__()
        if window < 1 or window % 2 == 0:
            raise ValueError(f"window is {window}; give an odd number of at least 1")
        self.grid, self.window = grid, window
        self.norm_mixer, self.norm_mlp = nn.GroupNorm(1, width), nn.GroupNorm(1, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.mixer_scale, self.mlp_scale = (nn.Parameter(torch.full((width,), scale)) for _ in range(2))
        for layer in (self.up, self.down):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def mix(self, x: Tensor) -> Tensor:
        """x: [B, D, N] → the average of each window, less the token itself, [B, D, N]."""
        maps = x.unflatten(2, self.grid)
        means = avg_pool2d(maps, self.window, stride=1, padding=self.window // 2, count_include_pad=False)
        return (means - maps).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mix(self.norm_mixer(x.transpose(1, 2)))
        x = x + self.mixer_scale * mixed.transpose(1, 2)
        normed = self.norm_mlp(x.transpose(1, 2)).transpose(1, 2)
        return x + self.mlp_scale * self.down(gelu(self.up(normed)))

"""RaftMLP (arXiv 2108.04384): tokens mixed by MLPs along columns and then along rows, a raft of channels together.

The D channels are R rafts of D / R. A vertical MLP sees, for one column and one place within the rafts, the values of
all rows and of all rafts at once, R times as many numbers as rows; a horizontal one does the same along a row. Each
follows a norm over channels and is residual, and an MLP over channels ends the block, as in a mixer. With S rows and
columns a token costs about 4·E·R·S·D multiplications for both, where an MLP over all places would cost 2·E·S²·D.

Shapes: B batch, N = h·w tokens of a grid in raster order, D width, R rafts, E expansion.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import gelu


class RaftMixing(nn.Module):
    """What one direction adds: [B, lines, places, D] → the same shape, mixed over places and rafts."""

    def __init__(self, width: int, places: int, rafts: int, expansion: int):
        super().__init__()
        self.rafts, mixed = rafts, rafts * places
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(mixed, expansion * mixed), nn.Linear(expansion * mixed, mixed)

    def forward(self, x: Tensor) -> Tensor:
        batch, lines, places, _ = x.shape
        rafts = self.norm(x).unflatten(3, (self.rafts, -1))  # [B, lines, places, R, D / R]
        together = rafts.permute(0, 1, 4, 3, 2).flatten(3)  # [B, lines, D / R, R·places]
        mixed = self.down(gelu(self.up(together))).unflatten(3, (self.rafts, places))
        return mixed.permute(0, 1, 4, 3, 2).reshape(batch, lines, places, -1)


class RaftBlock(nn.Module):
    """[B, N, D] → [B, N, D] over a grid of (rows, columns); a line is a grid of one row.

    inner: width of the feed-forward layer over channels. rafts: R; expansion: E. The grid is fixed: the authors resize
    a map of another size to it and back. ValueError for a width that the rafts do not divide.
    """

    def __init__(self, width: int, grid: tuple[int, int], inner: int, rafts: int = 2, expansion: int = 2):
        super().__init__()
        if rafts < 1 or width % rafts:
            raise ValueError(f"{rafts} rafts do not divide a width of {width}; choose a number that does")
        self.grid = grid
        self.vertical = RaftMixing(width, grid[0], rafts, expansion)
        self.horizontal = RaftMixing(width, grid[1], rafts, expansion)
        self.norm_mlp = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        maps = x.unflatten(1, self.grid)
        maps = maps + self.vertical(maps.transpose(1, 2)).transpose(1, 2)
        x = (maps + self.horizontal(maps)).flatten(1, 2)
        return x + self.down(gelu(self.up(self.norm_mlp(x))))

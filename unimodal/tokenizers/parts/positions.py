"""Positions that are computed and not learned.

Shapes: N = side·side positions in raster order, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def make_mae_positions(side: int, width: int, base: float = 10_000.0) -> Tensor:
    """Sines and cosines of the column in the first half, of the row in the second, float32 [N, D], as MAE has them
    (arXiv 2111.06377). ValueError for a width that is no multiple of 4."""
    if width % 4:
        raise ValueError(f"sine positions need a width that is a multiple of 4; got {width}")
    quarter = width // 4
    frequencies = base ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies  # [side, D/4]
    waves = torch.cat([angles.sin(), angles.cos()], -1)  # [side, D/2]
    columns, rows = waves.repeat(side, 1), waves.repeat_interleave(side, 0)
    return torch.cat([columns, rows], -1).float()

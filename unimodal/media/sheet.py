"""A sheet of media as one picture: real ones beside what was made of them.

Shapes: H, W height and width, T samples or frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

GAP = 2  # pixels between pictures
MOST_FRAMES = 8  # of a clip


def draw_medium(item: Tensor) -> Tensor:
    """A picture [3, H, W] or mask [1, H, W], the frames of a clip [T, 3, H, W] beside each other, or the spectrogram of
    a sound [T] or [1, T], as float [3, h, w] in [0, 1]."""
    if item.dim() == 3 and item.shape[0] in (1, 3):
        return item.clamp(0, 1).expand(3, -1, -1)
    if item.dim() == 4:
        chosen = torch.linspace(0, len(item) - 1, min(len(item), MOST_FRAMES)).round().long()
        return torch.cat(list(item[chosen].clamp(0, 1)), dim=2)
    wave = item.flatten().float()
    wave = pad(wave, (0, max(0, 129 - len(wave))))  # half a window is reflected
    spectrum = torch.stft(wave, 256, 64, window=torch.hann_window(256), return_complex=True).abs()
    loud = (spectrum.clamp_min(1e-4).log10() + 4) / 6  # [F, T]
    return loud.clamp(0, 1).flip(0).expand(3, -1, -1)


def draw_sheet(pairs: Sequence[tuple[Tensor, Tensor]], columns: int = 4) -> Tensor:
    """Pairs of a real medium and a decoded one, one above the other, in rows of `columns`: float [3, H, W]."""
    cells = []
    for pair in pairs:
        real, made = map(draw_medium, pair)
        if made.shape != real.shape:
            made = interpolate(made[None], real.shape[-2:])[0]
        cells.append(torch.cat([real, torch.ones(3, GAP, real.shape[2]), made], dim=1))
    height, width = (max(cell.shape[axis] for cell in cells) for axis in (1, 2))
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    sheet = torch.ones(3, rows * (height + 2 * GAP), columns * (width + 2 * GAP))
    for number, cell in enumerate(cells):
        top, left = number // columns * (height + 2 * GAP) + GAP, number % columns * (width + 2 * GAP) + GAP
        sheet[:, top : top + cell.shape[1], left : left + cell.shape[2]] = cell
    return sheet

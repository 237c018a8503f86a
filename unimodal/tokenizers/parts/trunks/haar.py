"""The Haar wavelet transform as an invertible patcher: a coarse picture and its details become channels.

Cosmos-Tokenizer's (arXiv 2501.03575): each level halves every axis; along an axis the low band is the mean of two
neighbours and the high band half of their difference, which is the orthonormal transform divided by √2 an axis.

Shapes: B batch, C channels, T frames, H/W height and width, p patch size (a power of two).
"""

from __future__ import annotations

import torch
from torch import Tensor

# axes in the order of the bands: a channel block `lh` is low along the first and high along the second
PICTURE_AXES = (-1, -2)
CLIP_AXES = (-3, -2, -1)


def count_levels(patch: int) -> int:
    """How often an axis is halved. ValueError unless `patch` is a power of two."""
    if patch < 1 or patch & (patch - 1):
        raise ValueError(f"a Haar patch is a power of two; got {patch}")
    return patch.bit_length() - 1


def split_bands(x: Tensor, axes: tuple[int, ...], gain: float = 1.0) -> Tensor:
    """One level: [B, C, …] → [B, C · 2^axes, …] with every axis halved; the axes must be even. gain: a factor."""
    parts = [x if gain == 1.0 else x * gain]
    for axis in axes:
        pairs = [part.unflatten(axis, (-1, 2)).unbind(axis) for part in parts]
        parts = [band for first, second in pairs for band in ((first + second) / 2, (first - second) / 2)]
    return torch.cat(parts, dim=1)


def join_bands(x: Tensor, axes: tuple[int, ...], gain: float = 1.0) -> Tensor:
    """The inverse of `split_bands` where the gain of both is 1."""
    parts = list(x.chunk(2 ** len(axes), dim=1))
    for axis in reversed(axes):
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [torch.stack([low + high, low - high], dim=axis).flatten(axis - 1, axis) for low, high in pairs]
    return parts[0] if gain == 1.0 else parts[0] * gain


#: the coefficient of both filters, and what half precision (bfloat16 and float16 alike) makes of it
COEFFICIENT, HALF_COEFFICIENT = 0.5**0.5, 0.70703125


class HaarPatcher:
    """Pictures [B, C, H, W] ⇄ [B, C·p², H/p, W/p].

    coefficient: that of the filters; weights that were run in half precision were used with it rounded, which makes
    pictures a little flatter.
    """

    axes: tuple[int, ...] = PICTURE_AXES

    def __init__(self, patch: int, coefficient: float = COEFFICIENT):
        self.patch, self.levels = patch, count_levels(patch)
        self.gain = 1.0 if coefficient == COEFFICIENT else (coefficient / COEFFICIENT) ** len(self.axes)

    def split(self, x: Tensor) -> Tensor:
        for _ in range(self.levels):
            x = split_bands(x, self.axes, self.gain)
        return x

    def join(self, x: Tensor) -> Tensor:
        for _ in range(self.levels):
            x = join_bands(x, self.axes, self.gain)
        return x


class CausalHaarPatcher(HaarPatcher):
    """Clips [B, C, T, H, W] ⇄ [B, C·p³, (T - 1)/p + 1, H/p, W/p]: the first frame is repeated p times before, so that
    it has a position of its own; p - 1 copies are dropped after."""

    axes = CLIP_AXES

    def split(self, x: Tensor) -> Tensor:
        return super().split(torch.cat([x[:, :, :1].repeat_interleave(self.patch, dim=2), x[:, :, 1:]], dim=2))

    def join(self, x: Tensor) -> Tensor:
        return super().join(x)[:, :, self.patch - 1 :]

"""The VQGAN of MaskGIT (arXiv 2202.04200): convolutions without attention.

Shapes: B batch, C channels, H/W sides of a picture, h/w those of its map.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, silu


class MaskgitResidual(nn.Module):
    """The residual block of MaskGIT's VQGAN (arXiv 2202.04200). Where the width changes, what is added is a convolution
    of the block's own output, as its authors' weights need it, and not one of its input."""

    def __init__(self, channels_in: int, channels_out: int, groups: int, eps: float = 1e-6):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in, eps)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, channels_out, eps)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        changes = channels_in != channels_out
        self.nin_shortcut = nn.Conv2d(channels_out, channels_out, 1, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C in, H, W] → [B, C out, H, W]."""
        y = self.conv2(silu(self.norm2(self.conv1(silu(self.norm1(x))))))
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(y))


class MaskgitNarrowing(nn.Module):
    """Residual blocks at one resolution, then half of it where this is not the last level."""

    def __init__(self, channels_in: int, channels_out: int, num_blocks: int, halves: bool, groups: int):
        super().__init__()
        self.block = nn.ModuleList(
            [MaskgitResidual(channels_out if i else channels_in, channels_out, groups) for i in range(num_blocks)]
        )
        self.halves = halves

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C in, H, W] → [B, C out, H, W] or of half the sides."""
        for block in self.block:
            x = block(x)
        return avg_pool2d(x, 2) if self.halves else x


class MaskgitEncoder(nn.Module):
    """The encoder of MaskGIT's VQGAN. multipliers: as in `MaskgitDecoder`; the map has depth channels."""

    def __init__(
        self, depth: int, channels: int, multipliers: Sequence[int], num_blocks: int, groups: int, colours: int = 3
    ):
        super().__init__()
        widths = [channels * multiplier for multiplier in multipliers]
        coarsest = widths[-1]
        self.conv_in = nn.Conv2d(colours, channels, 3, padding=1, bias=False)
        self.down = nn.ModuleList(
            [
                MaskgitNarrowing(into, width, num_blocks, level < len(widths) - 1, groups)
                for level, (into, width) in enumerate(zip((channels, *widths[:-1]), widths, strict=True))
            ]
        )
        self.mid = nn.ModuleList([MaskgitResidual(coarsest, coarsest, groups) for _ in range(num_blocks)])
        self.norm_out = nn.GroupNorm(groups, coarsest, 1e-6)
        self.conv_out = nn.Conv2d(coarsest, depth, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: pictures [B, colours, H, W] → [B, depth, h, w]."""
        x = self.conv_in(x)
        for block in (*self.down, *self.mid):
            x = block(x)
        return self.conv_out(silu(self.norm_out(x)))


class MaskgitLevel(nn.Module):
    """Residual blocks at one resolution, then twice the resolution where this is not the last level."""

    def __init__(self, channels_in: int, channels_out: int, num_blocks: int, doubles: bool, groups: int):
        super().__init__()
        self.block = nn.ModuleList(
            [MaskgitResidual(channels_out if i else channels_in, channels_out, groups) for i in range(num_blocks)]
        )
        self.upsample_conv = nn.Conv2d(channels_out, channels_out, 3, padding=1) if doubles else None

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C in, H, W] → [B, C out, H, W] or of twice the sides."""
        for block in self.block:
            x = block(x)
        return x if self.upsample_conv is None else self.upsample_conv(interpolate(x, scale_factor=2.0))


class MaskgitDecoder(nn.Module):
    """The decoder of MaskGIT's VQGAN. Levels are stored from the finest to the coarsest and run the other way.

    multipliers: of `channels` at each level, the finest first; the picture has 2^(levels - 1) times the map's sides.
    """

    def __init__(
        self, depth: int, channels: int, multipliers: Sequence[int], num_blocks: int, groups: int, colours: int = 3
    ):
        super().__init__()
        widths = [channels * multiplier for multiplier in multipliers]
        coarsest = widths[-1]
        self.conv_in = nn.Conv2d(depth, coarsest, 3, padding=1)
        self.mid = nn.ModuleList([MaskgitResidual(coarsest, coarsest, groups) for _ in range(num_blocks)])
        self.up = nn.ModuleList(
            [
                MaskgitLevel(widths[min(level + 1, len(widths) - 1)], width, num_blocks, level > 0, groups)
                for level, width in enumerate(widths)
            ]
        )
        self.norm_out = nn.GroupNorm(groups, widths[0], 1e-6)
        self.conv_out = nn.Conv2d(widths[0], colours, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, depth, h, w] → pictures [B, colours, H, W]."""
        x = self.conv_in(x)
        for block in (*self.mid, *reversed(self.up)):
            x = block(x)
        return self.conv_out(silu(self.norm_out(x)))

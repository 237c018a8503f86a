"""Open-MAGVIT2's encoder and decoder of clips (arXiv 2409.04410): its trunks of pictures with causal convolutions.

A convolution over time sees the frames up to its own: two empty frames stand before the first. Levels of multiplier 1
halve height and width alone, the others the frames too, so that 1 + 4 k frames become 1 + k steps with two of these.
Norms see the whole clip.

Shapes: B batch, C channels, Z channels between encoder and decoder, T frames, H and W height and width; t, h and w
those of the map.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from unimodal.tokenizers.parts.trunks.vqgan import EPSILON, AdaptiveNorm, ConvSettings


class CausalConv(nn.Module):
    """A convolution over frames, height and width: [B, C, T, H, W] → [B, C', T', H', W']."""

    def __init__(
        self, channels: int, out_channels: int, kernel: int, stride: tuple[int, int, int] = (1, 1, 1), bias: bool = True
    ):
        super().__init__()
        self.conv_1 = nn.Conv3d(channels, out_channels, kernel, stride, bias=bias)
        side = kernel // 2
        self.margins = (side, side, side, side, kernel - 1, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_1(pad(x, self.margins))


class CausalBlock(nn.Module):
    """Two 3×3×3 convolutions behind norm and SiLU, beside a shortcut: [B, C, T, H, W] → [B, C', T, H, W]."""

    def __init__(self, channels: int, out_channels: int, settings: ConvSettings):
        super().__init__()
        self.norm1 = nn.GroupNorm(settings.num_norm_groups, channels, EPSILON)
        self.conv1 = CausalConv(channels, out_channels, 3, bias=settings.block_biases)
        self.norm2 = nn.GroupNorm(settings.num_norm_groups, out_channels, EPSILON)
        self.conv2 = CausalConv(out_channels, out_channels, 3, bias=settings.block_biases)
        self.changes_width = channels != out_channels
        if self.changes_width:
            self.nin_shortcut = CausalConv(channels, out_channels, 1, bias=settings.block_biases)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(silu(self.norm2(self.conv1(silu(self.norm1(x))))))
        return (self.nin_shortcut(x) if self.changes_width else x) + y


class ClipDoubleSize(CausalConv):
    """A convolution whose parts become neighbouring pixels, and frames where `in_time`: the first step is one frame,
    every later one two. [B, C, T, H, W] → [B, C, T or 2T - 1, 2H, 2W]."""

    def __init__(self, channels: int, in_time: bool):
        frames = 2 if in_time else 1
        super().__init__(channels, 4 * frames * channels, 3)
        self.frames = frames

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, steps, height, width = x.shape
        parts = super().forward(x).view(batch, self.frames, 2, 2, channels, steps, height, width)
        parts = parts.permute(0, 4, 5, 1, 6, 2, 7, 3)
        clip = parts.reshape(batch, channels, self.frames * steps, 2 * height, 2 * width)
        return clip if self.frames == 1 else torch.cat([clip[:, :, :1], clip[:, :, 2:]], dim=2)


class ClipLevel(nn.Module):
    """The blocks of one resolution and the change of size behind them, after an adaptive norm in a decoder."""

    def __init__(
        self, channels: int, out_channels: int, settings: ConvSettings, resize: nn.Module | None, adapts: bool
    ):
        super().__init__()
        self.blocks = nn.ModuleList(
            CausalBlock(out_channels if index else channels, out_channels, settings)
            for index in range(settings.num_blocks)
        )
        self.adaptive = AdaptiveNorm(channels, settings.latent_width, settings) if adapts else None
        self.resize = resize

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        if self.adaptive is not None and style is not None:
            x = self.adaptive(x, style)
        for block in self.blocks:
            x = block(x)
        return x if self.resize is None else self.resize(x)


class ClipEncoder(nn.Module):
    """Clips [B, 3, T, H, W] → maps [B, Z, t, h, w]."""

    def __init__(self, settings: ConvSettings):
        super().__init__()
        self.conv_in = CausalConv(3, settings.width, 3, bias=settings.block_biases)
        self.levels, channels = nn.ModuleList(), settings.width
        for level, multiplier in enumerate(settings.multipliers):
            wider = settings.width * multiplier
            stride = (1 if multiplier == 1 else 2, 2, 2)
            last = level == len(settings.multipliers) - 1
            resize = None if last else CausalConv(wider, wider, 3, stride)
            self.levels.append(ClipLevel(channels, wider, settings, resize, adapts=False))
            channels = wider
        self.middle = nn.Sequential(*(CausalBlock(channels, channels, settings) for _ in range(settings.middle_blocks)))
        self.norm_out = nn.GroupNorm(settings.num_norm_groups, channels, EPSILON)
        self.conv_out = CausalConv(channels, settings.latent_width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.levels:
            x = level(x)
        return self.conv_out(silu(self.norm_out(self.middle(x))))


class ClipDecoder(nn.Module):
    """Maps [B, Z, t, h, w] → clips [B, 3, T, H, W]; level 0 is the coarsest, and runs first."""

    def __init__(self, settings: ConvSettings):
        super().__init__()
        channels = settings.width * settings.multipliers[-1]
        self.conv_in = CausalConv(settings.latent_width, channels, 3)
        self.middle = nn.Sequential(*(CausalBlock(channels, channels, settings) for _ in range(settings.middle_blocks)))
        self.levels = nn.ModuleList()
        for level in reversed(range(len(settings.multipliers))):
            narrower = settings.width * settings.multipliers[level]
            resize = ClipDoubleSize(narrower, settings.multipliers[level - 1] != 1) if level else None
            self.levels.append(ClipLevel(channels, narrower, settings, resize, adapts=True))
            channels = narrower
        self.norm_out = nn.GroupNorm(settings.num_norm_groups, channels, EPSILON)
        self.conv_out = CausalConv(channels, 3, 3)

    def forward(self, z: Tensor) -> Tensor:
        x = self.middle(self.conv_in(z))
        for level in self.levels:
            x = level(x, z)
        return self.conv_out(silu(self.norm_out(x)))

"""The convolutional encoder and decoder of VQGAN (arXiv 2012.09841), with what its descendants changed as settings.

The defaults are LlamaGen's (arXiv 2406.06525): padding behind the picture where it is halved, nearest-neighbour
upsampling, attention in the middle, one block more at each level of the decoder. taming-transformers and IBQ (arXiv
2412.02692) differ in names only; Open-MAGVIT2 (arXiv 2409.04410) and WeTok (2508.05599) set the rest.

Shapes: B batch, C channels of a level, Z channels between encoder and decoder, H and W height and width, h and w those
of the map.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, scaled_dot_product_attention, silu

EPSILON = 1e-6


class ConvSettings(BaseModel):
    """Sizes and conventions of both trunks.

    width: channels of the first level. multipliers: of each level's channels over width, finest first; every level but
    the last halves the picture. num_blocks: residual blocks of a level; level_blocks: of each level, finest first,
    where they differ. extra_blocks: how many more a level of the
    decoder has. middle_blocks: residual blocks at the coarsest map; middle_attention: attention after the first one.
    attention_levels: levels with attention after every block, 0 the finest. latent_width: Z.
    downsampling: where a picture is padded to be halved: "behind" (right and below) or "around". upsampling: "nearest",
    then a convolution; or "shuffle", a convolution to 4 C channels whose four parts become neighbouring pixels.
    adaptive_norm: every level of the decoder begins with a norm whose scale and shift are read from the decoder's
    input. block_biases: of the convolutions in blocks, and of the encoder's first. last_kernel: of the encoder's last
    convolution. noise: the decoder takes Z channels of normal noise beside its input (WeTok's generative decoder).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    width: int = Field(default=128, ge=1)
    multipliers: tuple[int, ...] = Field(default=(1, 1, 2, 2, 4), min_length=1)
    num_blocks: int = Field(default=2, ge=1)
    level_blocks: tuple[int, ...] = ()
    extra_blocks: int = Field(default=1, ge=0)
    middle_blocks: int = Field(default=2, ge=1)
    middle_attention: bool = True
    attention_levels: tuple[int, ...] = ()
    latent_width: int = Field(default=256, ge=1)
    num_norm_groups: int = Field(default=32, ge=1)
    downsampling: Literal["behind", "around"] = "behind"
    upsampling: Literal["nearest", "shuffle"] = "nearest"
    adaptive_norm: bool = False
    block_biases: bool = True
    last_kernel: Literal[1, 3] = 3
    noise: bool = False

    @property
    def factor(self) -> int:
        """Pixels of a position's side."""
        return 2 ** (len(self.multipliers) - 1)

    def count_blocks(self, level: int) -> int:
        """Residual blocks of a level of the encoder, 0 the finest."""
        return self.level_blocks[level] if self.level_blocks else self.num_blocks

    @model_validator(mode="after")
    def check_fit(self) -> Self:
        """ValueError for widths that the norms cannot divide, and for attention or blocks of levels that are not
        there."""
        if self.level_blocks and len(self.level_blocks) != len(self.multipliers):
            raise ValueError(f"level_blocks {self.level_blocks} must be as many as multipliers {self.multipliers}")
        for multiplier in self.multipliers:
            if self.width * multiplier % self.num_norm_groups:
                raise ValueError(
                    f"width {self.width} times multiplier {multiplier} does not divide into num_norm_groups "
                    f"{self.num_norm_groups}; change one of them"
                )
        if any(not 0 <= level < len(self.multipliers) for level in self.attention_levels):
            raise ValueError(
                f"attention_levels {self.attention_levels} must lie among the {len(self.multipliers)} multipliers"
            )
        return self


class ConvBlock(nn.Module):
    """Two 3×3 convolutions behind norm and SiLU, beside a shortcut: [B, C, H, W] → [B, C', H, W]."""

    def __init__(self, channels: int, out_channels: int, settings: ConvSettings):
        super().__init__()
        self.norm1 = nn.GroupNorm(settings.num_norm_groups, channels, EPSILON)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1, bias=settings.block_biases)
        self.norm2 = nn.GroupNorm(settings.num_norm_groups, out_channels, EPSILON)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=settings.block_biases)
        if channels != out_channels:
            self.nin_shortcut = nn.Conv2d(channels, out_channels, 1, bias=settings.block_biases)
        self.changes_width = channels != out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(silu(self.norm2(self.conv1(silu(self.norm1(x))))))
        return (self.nin_shortcut(x) if self.changes_width else x) + y


class ConvAttention(nn.Module):
    """Attention with one head over all positions of a map, residual: [B, C, H, W] → the same shape."""

    def __init__(self, channels: int, settings: ConvSettings):
        super().__init__()
        self.norm = nn.GroupNorm(settings.num_norm_groups, channels, EPSILON)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (layer(normed).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))  # [B, HW, C]
        mixed = scaled_dot_product_attention(q, k, v).transpose(1, 2).view_as(x)
        return x + self.proj_out(mixed)


class AdaptiveNorm(nn.Module):
    """Group norm whose scale and shift are linear in the deviation and the mean of each style channel over the map.

    The deviation is that of Open-MAGVIT2's code: the root of the unbiased variance plus 1e-6.
    """

    def __init__(self, channels: int, style_channels: int, settings: ConvSettings):
        super().__init__()
        self.norm = nn.GroupNorm(settings.num_norm_groups, channels, EPSILON, affine=False)
        self.gamma = nn.Linear(style_channels, channels)
        self.beta = nn.Linear(style_channels, channels)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """x: [B, C, H, W]; style: [B, Z, h, w] → [B, C, H, W]; clips have their frames before H and h."""
        style, shape = style.flatten(2), (*x.shape[:2], *[1] * (x.dim() - 2))
        scale = self.gamma((style.var(dim=-1) + EPSILON).sqrt()).view(shape)
        shift = self.beta(style.mean(dim=-1)).view(shape)
        return scale * self.norm(x) + shift


class HalfSize(nn.Conv2d):
    """A 3×3 convolution of stride 2: [B, C, H, W] → [B, C, H/2, W/2]."""

    def __init__(self, channels: int, settings: ConvSettings):
        super().__init__(channels, channels, 3, stride=2, padding=int(settings.downsampling == "around"))
        self.pads_behind = settings.downsampling == "behind"

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad(x, (0, 1, 0, 1)) if self.pads_behind else x)


class DoubleSize(nn.Conv2d):
    """A 3×3 convolution that doubles height and width: [B, C, H, W] → [B, C, 2H, 2W]."""

    def __init__(self, channels: int, settings: ConvSettings):
        self.shuffles = settings.upsampling == "shuffle"
        super().__init__(channels, channels * (4 if self.shuffles else 1), 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if not self.shuffles:
            return super().forward(interpolate(x, scale_factor=2.0, mode="nearest"))
        batch, channels, height, width = x.shape
        parts = super().forward(x).view(batch, 2, 2, channels, height, width)  # the place in the block is slowest
        return parts.permute(0, 3, 4, 1, 5, 2).reshape(batch, channels, 2 * height, 2 * width)


class ConvLevel(nn.Module):
    """The blocks of one resolution, each with its attention where there is some, and the change of size behind them."""

    def __init__(
        self,
        channels: int,
        out_channels: int,
        num_blocks: int,
        attends: bool,
        resize: nn.Module | None,
        settings: ConvSettings,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(
            ConvBlock(out_channels if index else channels, out_channels, settings) for index in range(num_blocks)
        )
        self.attention = nn.ModuleList(ConvAttention(out_channels, settings) for _ in range(num_blocks * attends))
        self.adaptive = AdaptiveNorm(channels, settings.latent_width, settings) if settings.adaptive_norm else None
        self.resize = resize

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        """x: [B, C, H, W]; style: [B, Z, h, w], what the adaptive norm reads, of a decoder's level that has one."""
        if style is not None and self.adaptive is not None:
            x = self.adaptive(x, style)
        for index, block in enumerate(self.blocks):
            x = block(x)
            if self.attention:
                x = self.attention[index](x)
        return x if self.resize is None else self.resize(x)


class ConvEncoder(nn.Module):
    """Pictures [B, 3, H, W] → maps [B, Z, H / factor, W / factor]."""

    def __init__(self, settings: ConvSettings, in_channels: int = 3):
        super().__init__()
        plain = settings.model_copy(update={"adaptive_norm": False})
        self.conv_in = nn.Conv2d(in_channels, settings.width, 3, padding=1, bias=settings.block_biases)
        self.levels, channels = nn.ModuleList(), settings.width
        for level, multiplier in enumerate(settings.multipliers):
            wider, last = settings.width * multiplier, level == len(settings.multipliers) - 1
            resize = None if last else HalfSize(wider, settings)
            attends = level in settings.attention_levels
            self.levels.append(ConvLevel(channels, wider, settings.count_blocks(level), attends, resize, plain))
            channels = wider
        self.middle = build_middle(channels, settings)
        self.norm_out = nn.GroupNorm(settings.num_norm_groups, channels, EPSILON)
        kernel = settings.last_kernel
        self.conv_out = nn.Conv2d(channels, settings.latent_width, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.levels:
            x = level(x)
        return self.conv_out(silu(self.norm_out(self.middle(x))))


class ConvDecoder(nn.Module):
    """Maps [B, Z, h, w] → pictures [B, 3, h · factor, w · factor]; level 0 is the coarsest, and runs first."""

    def __init__(self, settings: ConvSettings, out_channels: int = 3):
        super().__init__()
        channels = settings.width * settings.multipliers[-1]
        self.conv_in = nn.Conv2d(settings.latent_width * (1 + settings.noise), channels, 3, padding=1)
        self.middle = build_middle(channels, settings)
        self.levels = nn.ModuleList()
        for level in reversed(range(len(settings.multipliers))):
            narrower = settings.width * settings.multipliers[level]
            resize = DoubleSize(narrower, settings) if level else None
            attends, num_blocks = (
                level in settings.attention_levels,
                settings.count_blocks(level) + settings.extra_blocks,
            )
            self.levels.append(ConvLevel(channels, narrower, num_blocks, attends, resize, settings))
            channels = narrower
        self.norm_out = nn.GroupNorm(settings.num_norm_groups, channels, EPSILON)
        self.conv_out = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        """z: [B, Z, h, w]; noise: the same shape, of settings with `noise`."""
        x = self.middle(self.conv_in(z if noise is None else torch.cat([z, noise], dim=1)))
        for level in self.levels:
            x = level(x, z)
        return self.conv_out(silu(self.norm_out(x)))


def build_middle(channels: int, settings: ConvSettings) -> nn.Sequential:
    """The blocks at the coarsest map; the attention, where there is some, stands behind the first."""
    layers: list[nn.Module] = [ConvBlock(channels, channels, settings) for _ in range(settings.middle_blocks)]
    if settings.middle_attention:
        layers.insert(1, ConvAttention(channels, settings))
    return nn.Sequential(*layers)

"""The convolutional networks of Cosmos-Tokenizer, for pictures and, causal in time, for clips (arXiv 2501.03575).

Both kinds have the same plan: residual blocks on levels of falling resolution, attention at some of them and in the
middle. `PictureLayers` and `ClipLayers` make what differs. A clip's convolutions are factorised into space and time;
in time they see only what came before, the first frame repeated.

Shapes: B batch, C channels, T frames, H/W height and width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d, pad, scaled_dot_product_attention, silu

from unimodal.tokenizers.parts.trunks.haar import count_levels

EPS = 1e-6


@dataclass(frozen=True)
class CosmosSizes:
    """The sizes of an encoder and its decoder; resolution is that at which attention is placed, and no limit."""

    channels: int
    multipliers: tuple[int, ...]
    num_blocks: int
    attention_resolutions: tuple[int, ...]
    resolution: int
    patch: int
    spatial_compression: int
    temporal_compression: int
    latent_channels: int

    @property
    def num_levels(self) -> int:
        return len(self.multipliers)

    @property
    def num_spatial(self) -> int:
        """Levels that halve height and width."""
        return count_levels(self.spatial_compression) - count_levels(self.patch)

    @property
    def num_temporal(self) -> int:
        """Levels that halve the frames."""
        return count_levels(self.temporal_compression) - count_levels(self.patch)


class Layers(Protocol):
    """What differs between pictures and clips."""

    def make_conv(self, inputs: int, outputs: int) -> nn.Module: ...

    def make_point_conv(self, inputs: int, outputs: int) -> nn.Module: ...

    def make_norm(self, channels: int) -> nn.Module: ...

    def make_attention(self, channels: int) -> nn.Module: ...

    @property
    def has_time(self) -> bool: ...

    def find_down(self, sizes: CosmosSizes, level: int) -> tuple[bool, bool]:
        """Whether the encoder halves space and time after a level."""

    def find_up(self, sizes: CosmosSizes, level: int) -> tuple[bool, bool]:
        """Whether the decoder doubles space and time after a level; 0 is that of the highest resolution."""

    def make_down(self, sizes: CosmosSizes, channels: int, level: int) -> nn.Module | None: ...

    def make_up(self, sizes: CosmosSizes, channels: int, level: int) -> nn.Module | None: ...


# ---- pictures


class PictureAttention(nn.Module):
    """Full attention of one head over the places of a picture, residual."""

    def __init__(self, layers: Layers, channels: int):
        super().__init__()
        self.norm = layers.make_norm(channels)
        self.q, self.k, self.v, self.proj_out = (layers.make_point_conv(channels, channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W]."""
        h = self.norm(x)
        q, k, v = (part(h).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))  # each [B, H·W, C]
        return x + self.proj_out(scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


class PictureDown(nn.Module):
    """Halves height and width; padded by one at the right and below."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(pad(x, (0, 1, 0, 1)))


class PictureUp(nn.Module):
    """Doubles height and width."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


@dataclass(frozen=True)
class PictureLayers:
    """Layers over [B, C, H, W]. num_groups: of the group norm."""

    num_groups: int = 32
    has_time = False

    def make_conv(self, inputs: int, outputs: int) -> nn.Module:
        return nn.Conv2d(inputs, outputs, 3, padding=1)

    def make_point_conv(self, inputs: int, outputs: int) -> nn.Module:
        return nn.Conv2d(inputs, outputs, 1)

    def make_norm(self, channels: int) -> nn.Module:
        return nn.GroupNorm(self.num_groups, channels, EPS)

    def make_attention(self, channels: int) -> nn.Module:
        return PictureAttention(self, channels)

    def find_down(self, sizes: CosmosSizes, level: int) -> tuple[bool, bool]:
        return level < sizes.num_spatial, False

    def find_up(self, sizes: CosmosSizes, level: int) -> tuple[bool, bool]:
        return level >= sizes.num_levels - sizes.num_spatial, False

    def make_down(self, sizes: CosmosSizes, channels: int, level: int) -> nn.Module | None:
        return PictureDown(channels) if self.find_down(sizes, level)[0] else None

    def make_up(self, sizes: CosmosSizes, channels: int, level: int) -> nn.Module | None:
        return PictureUp(channels) if self.find_up(sizes, level)[0] else None


# ---- clips


class CausalConv3d(nn.Module):
    """A convolution over [B, C, T, H, W] that sees no later frame; before the first there are copies of it."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int, int], stride: tuple[int, int, int] = (1, 1, 1)
    ):
        super().__init__()
        self.before = kernel[0] - 1 if stride[0] == 1 else kernel[0] - stride[0]
        self.around = kernel[1] // 2 if stride[1] == 1 else 0
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[:, :, :1].expand(-1, -1, self.before, -1, -1), x], dim=2)
        return self.conv3d(pad(x, (self.around,) * 4))


class FrameNorm(nn.Module):
    """Group norm of one group over each frame alone, so that no frame sees a later one."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.GroupNorm(1, channels, EPS)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2)  # [B, T, C, H, W]
        return self.norm(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2)


class ClipAttention(nn.Module):
    """Attention of one head, residual: over the places of each frame, or over a place's frames up to its own."""

    def __init__(self, layers: Layers, channels: int, in_time: bool):
        super().__init__()
        self.in_time = in_time
        self.norm = layers.make_norm(channels)
        self.q, self.k, self.v, self.proj_out = (layers.make_point_conv(channels, channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, T, H, W]."""
        h = self.norm(x)
        order = (0, 3, 4, 2, 1) if self.in_time else (0, 2, 3, 4, 1)
        parts = [part(h).permute(order) for part in (self.q, self.k, self.v)]  # [B, H, W, T, C] or [B, T, H, W, C]
        shape = parts[0].shape
        q, k, v = (part if self.in_time else part.flatten(2, 3) for part in parts)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=self.in_time).reshape(shape)
        back = (0, 4, 3, 1, 2) if self.in_time else (0, 4, 1, 2, 3)
        return x + self.proj_out(mixed.permute(back))


class ClipDown(nn.Module):
    """Halves the sides, the frames, both or, at a level for neither, nothing: a strided convolution plus the mean."""

    def __init__(self, channels: int, spatial: bool, temporal: bool):
        super().__init__()
        self.spatial, self.temporal = spatial, temporal
        self.conv1 = CausalConv3d(channels, channels, (1, 3, 3), (1, 2, 2))
        self.conv2 = CausalConv3d(channels, channels, (3, 1, 1), (2, 1, 1))
        self.conv3 = CausalConv3d(channels, channels, (1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.spatial:
            x = pad(x, (0, 1, 0, 1))
            x = self.conv1(x) + avg_pool3d(x, (1, 2, 2))
        if self.temporal:
            x = torch.cat([x[:, :, :1], x], dim=2)
            x = self.conv2(x) + avg_pool3d(x, (2, 1, 1))
        return self.conv3(x) if self.spatial or self.temporal else x


class ClipUp(nn.Module):
    """Doubles the sides, the frames (of more than one), both or nothing."""

    def __init__(self, channels: int, spatial: bool, temporal: bool):
        super().__init__()
        self.spatial, self.temporal = spatial, temporal
        self.conv1 = CausalConv3d(channels, channels, (3, 1, 1))
        self.conv2 = CausalConv3d(channels, channels, (1, 3, 3))
        self.conv3 = CausalConv3d(channels, channels, (1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.temporal:
            if x.shape[2] > 1:
                x = x.repeat_interleave(2, dim=2)[:, :, 1:]
            x = self.conv1(x) + x
        if self.spatial:
            x = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
            x = self.conv2(x) + x
        return self.conv3(x) if self.spatial or self.temporal else x


@dataclass(frozen=True)
class ClipLayers:
    """Layers over [B, C, T, H, W]."""

    has_time = True

    def make_conv(self, inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(CausalConv3d(inputs, outputs, (1, 3, 3)), CausalConv3d(outputs, outputs, (3, 1, 1)))

    def make_point_conv(self, inputs: int, outputs: int) -> nn.Module:
        return CausalConv3d(inputs, outputs, (1, 1, 1))

    def make_norm(self, channels: int) -> nn.Module:
        return FrameNorm(channels)

    def make_attention(self, channels: int) -> nn.Module:
        return nn.Sequential(ClipAttention(self, channels, in_time=False), ClipAttention(self, channels, in_time=True))

    def find_down(self, sizes: CosmosSizes, level: int) -> tuple[bool, bool]:
        last = level == sizes.num_levels - 1
        return not last and level < sizes.num_spatial, not last and level < sizes.num_temporal

    def find_up(self, sizes: CosmosSizes, level: int) -> tuple[bool, bool]:
        """The order is not the mirror of `find_down`: counted from the lowest level, the first never doubles the
        frames, and it doubles the sides only where these are halved more often than the frames."""
        if level == 0:
            return False, False
        from_lowest = sizes.num_levels - level - 1
        temporal = 0 < from_lowest < sizes.num_temporal + 1
        return temporal or (from_lowest < sizes.num_spatial and sizes.num_spatial > sizes.num_temporal), temporal

    def make_down(self, sizes: CosmosSizes, channels: int, level: int) -> nn.Module | None:
        return None if level == sizes.num_levels - 1 else ClipDown(channels, *self.find_down(sizes, level))

    def make_up(self, sizes: CosmosSizes, channels: int, level: int) -> nn.Module | None:
        return None if level == 0 else ClipUp(channels, *self.find_up(sizes, level))


# ---- the plan


class ResidualBlock(nn.Module):
    """Norm, SiLU and convolution, twice, residual."""

    def __init__(self, layers: Layers, inputs: int, outputs: int):
        super().__init__()
        self.norm1, self.conv1 = layers.make_norm(inputs), layers.make_conv(inputs, outputs)
        self.norm2, self.conv2 = layers.make_norm(outputs), layers.make_conv(outputs, outputs)
        self.nin_shortcut = layers.make_point_conv(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(silu(self.norm2(h)))


class Level(nn.Module):
    """Blocks of one resolution, each with its attention where there is some, and the way to the next resolution."""

    def __init__(self, blocks: list[nn.Module], attention: list[nn.Module]):
        super().__init__()
        self.block, self.attn = nn.ModuleList(blocks), nn.ModuleList(attention)
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[number](x)
        for change in (self.downsample, self.upsample):
            x = x if change is None else change(x)
        return x


class Middle(nn.Module):
    """A block, attention and a block at the lowest resolution."""

    def __init__(self, layers: Layers, channels: int):
        super().__init__()
        self.block_1 = ResidualBlock(layers, channels, channels)
        self.attn_1 = layers.make_attention(channels)
        self.block_2 = ResidualBlock(layers, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


def make_level(layers: Layers, sizes: CosmosSizes, inputs: int, outputs: int, count: int, resolution: int) -> Level:
    blocks: list[nn.Module] = [ResidualBlock(layers, inputs if n == 0 else outputs, outputs) for n in range(count)]
    attention = [layers.make_attention(outputs) for _ in blocks if resolution in sizes.attention_resolutions]
    return Level(blocks, attention)


class CosmosEncoder(nn.Module):
    """Patches [B, inputs, …] → latents [B, latent_channels, …] of a lower resolution."""

    def __init__(self, layers: Layers, sizes: CosmosSizes, inputs: int):
        super().__init__()
        self.conv_in = layers.make_conv(inputs, sizes.channels)
        channels, resolution = sizes.channels, sizes.resolution // sizes.patch
        self.down = nn.ModuleList()
        for number, multiplier in enumerate(sizes.multipliers):
            outputs = sizes.channels * multiplier
            level = make_level(layers, sizes, channels, outputs, sizes.num_blocks, resolution)
            level.downsample = layers.make_down(sizes, outputs, number)
            resolution = resolution if level.downsample is None else resolution // 2
            channels = outputs
            self.down.append(level)
        self.mid = Middle(layers, channels)
        self.norm_out = layers.make_norm(channels)
        self.conv_out = layers.make_conv(channels, sizes.latent_channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(silu(self.norm_out(self.mid(h))))


class CosmosDecoder(nn.Module):
    """Latents [B, latent_channels, …] → patches [B, outputs, …]. `up` is stored from the highest resolution down."""

    def __init__(self, layers: Layers, sizes: CosmosSizes, outputs: int):
        super().__init__()
        channels = sizes.channels * sizes.multipliers[-1]
        resolution = sizes.resolution // sizes.patch // 2 ** (sizes.num_levels - 1)
        self.conv_in = layers.make_conv(sizes.latent_channels, channels)
        self.mid = Middle(layers, channels)
        levels: list[nn.Module] = []
        for number in reversed(range(sizes.num_levels)):
            made = sizes.channels * sizes.multipliers[number]
            level = make_level(layers, sizes, channels, made, sizes.num_blocks + 1, resolution)
            level.upsample = layers.make_up(sizes, made, number)
            resolution = resolution if level.upsample is None else resolution * 2
            channels = made
            levels.insert(0, level)
        self.up = nn.ModuleList(levels)
        self.norm_out = layers.make_norm(channels)
        self.conv_out = layers.make_conv(channels, outputs)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(silu(self.norm_out(h)))

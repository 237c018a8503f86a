"""ViTamin: two convolutional stages, then a transformer with gated feed-forwards; and its mirror (arXiv 2404.02132).

Weights have timm's names of the encoder and UniTok's of the decoder.

Shapes: B batch, C channels, H/W height and width, N tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, gelu, interpolate, layer_norm

from unimodal.tokenizers.parts.trunks.timm_vit import FusedAttention

EPS = 1e-6


@dataclass(frozen=True)
class VitaminSizes:
    """widths: of the two convolutional stages and of the transformer. encoder_blocks, decoder_blocks: of the stages, in
    the order in which they run. expansion: of the feed-forwards."""

    widths: tuple[int, int, int]
    encoder_blocks: tuple[int, int]
    decoder_blocks: tuple[int, int]
    depth: int
    num_heads: int
    expansion: float


def round_channels(wanted: float, divisor: int = 8) -> int:
    """The multiple of `divisor` that is nearest to `wanted`, at least 0.9 times it."""
    rounded = max(divisor, int(wanted + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * wanted else rounded


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each place: [B, C, H, W] → the same shape."""

    def __init__(self, channels: int):
        super().__init__(channels, EPS)

    def forward(self, input: Tensor) -> Tensor:
        x = layer_norm(input.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class HalvingShortcut(nn.Module):
    """Mean of 3×3 places at every second, then a convolution where the width changes."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.expand = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(avg_pool2d(x, 3, 2, 1, count_include_pad=False))


class Doubling(nn.Module):
    """Each place four times, then a 3×3 convolution."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(interpolate(x, scale_factor=2, mode="nearest"))


class InvertedBlock(nn.Module):
    """Norm, 1×1 to four times the width, depthwise 3×3, 1×1 back; residual (MobileNet v2, arXiv 1801.04381).

    resize: "halve" or "double" the sides, or None.
    """

    def __init__(self, inputs: int, outputs: int, resize: str | None):
        super().__init__()
        hidden = round_channels(4 * outputs)
        if resize is None:
            self.shortcut: nn.Module = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        else:
            self.shortcut = HalvingShortcut(inputs, outputs) if resize == "halve" else Doubling(inputs, outputs)
        self.pre_norm = ChannelNorm(inputs)
        self.conv1_1x1 = nn.Conv2d(inputs, hidden, 1)
        self.up = Doubling(hidden, hidden) if resize == "double" else nn.Identity()
        stride = 2 if resize == "halve" else 1
        self.conv2_kxk = nn.Conv2d(hidden, hidden, 3, stride=stride, padding=1, groups=hidden)
        self.conv3_1x1 = nn.Conv2d(hidden, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(gelu(self.conv1_1x1(self.pre_norm(x))))
        return self.conv3_1x1(gelu(self.conv2_kxk(h))) + self.shortcut(x)


def make_stage(inputs: int, outputs: int, count: int, resize: str) -> nn.Sequential:
    """So many blocks, of which the first changes size and width."""
    first = InvertedBlock(inputs, outputs, resize)
    return nn.Sequential(first, *(InvertedBlock(outputs, outputs, None) for _ in range(count - 1)))


class GatedForward(nn.Module):
    """A feed-forward with a norm of its own, one half of whose hidden units gates the other by a GELU (tanh form)."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, EPS)
        self.w0, self.w1, self.w2 = nn.Linear(width, inner), nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.w2(gelu(self.w0(x), approximate="tanh") * self.w1(x))


class GatedBlock(nn.Module):
    """Attention and a gated feed-forward, each after a norm, residual."""

    def __init__(self, width: int, num_heads: int, inner: int):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, EPS), FusedAttention(width, num_heads)
        self.norm2, self.mlp = nn.LayerNorm(width, EPS), GatedForward(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def make_blocks(sizes: VitaminSizes) -> nn.Sequential:
    width = sizes.widths[2]
    return nn.Sequential(
        *(GatedBlock(width, sizes.num_heads, int(sizes.expansion * width)) for _ in range(sizes.depth))
    )


class Stem(nn.Module):
    """A picture at half its size: [B, 3, H, W] → [B, C, H/2, W/2]."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, channels, 3, stride=2, padding=1), ChannelNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(gelu(self.norm1(self.conv1(x))))


class HalvingProjection(nn.Module):
    """Norm and a 3×3 convolution of stride 2, to the transformer's width."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.proj, self.norm = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), ChannelNorm(inputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.norm(x))


class ConvStages(nn.Module):
    """A picture [B, 3, H, W] → a map of the transformer's width, [B, D, H/16, W/16]."""

    def __init__(self, sizes: VitaminSizes):
        super().__init__()
        first, second, width = sizes.widths
        self.stem = Stem(first)
        self.stages = nn.Sequential(
            make_stage(first, first, sizes.encoder_blocks[0], "halve"),
            make_stage(first, second, sizes.encoder_blocks[1], "halve"),
        )
        self.pool = HalvingProjection(second, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.stages(self.stem(x)))


class VitaminEncoder(nn.Module):
    """Pictures [B, 3, H, W] → tokens [B, H/16 · W/16, D], row by row; without positions of their own."""

    def __init__(self, sizes: VitaminSizes):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"backbone": ConvStages(sizes)})
        self.pos_embed = nn.Parameter(torch.zeros(1, 1, sizes.widths[2]), requires_grad=False)
        self.blocks = make_blocks(sizes)
        self.norm = nn.LayerNorm(sizes.widths[2], EPS)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch_embed["backbone"](x).flatten(2).transpose(1, 2)
        return self.norm(self.blocks(tokens + self.pos_embed))


class PixelStem(nn.Module):
    """A map at twice its size, as pixels: [B, C, H, W] → [B, 3, 2H, 2W]."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1, self.norm1 = Doubling(channels, channels), ChannelNorm(channels)
        self.conv2 = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(gelu(self.norm1(self.conv1(x))))


class VitaminDecoder(nn.Module):
    """Tokens of a grid [B, h·w, D] → pictures [B, 3, 16h, 16w]."""

    def __init__(self, sizes: VitaminSizes):
        super().__init__()
        first, second, width = sizes.widths
        self.blocks = make_blocks(sizes)
        self.norm = nn.LayerNorm(width, EPS)
        self.up_conv1 = Doubling(width, second)
        self.up_conv2 = make_stage(second, second, sizes.decoder_blocks[0], "double")
        self.up_conv3 = make_stage(second, first, sizes.decoder_blocks[1], "double")
        self.up_conv4 = PixelStem(first)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        cells = self.norm(self.blocks(x)).transpose(1, 2).unflatten(2, grid)
        return self.up_conv4(self.up_conv3(self.up_conv2(self.up_conv1(cells))))

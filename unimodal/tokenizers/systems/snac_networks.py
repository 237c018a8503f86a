"""The networks of SNAC: depthwise convolutions, Snake, attention within windows, and noise in the decoder.

The modules have the authors' names of weights.

Shapes: B batch, C channels, T steps, H heads, W steps of a window, d width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.parametrizations import weight_norm

from unimodal.tokenizers.parts.trunks.snake import Snake

HEAD_WIDTH = 64
DILATIONS = (1, 3, 9)


class ResidualUnit(nn.Module):
    """[B, C, T] → the same, with what two convolutions add."""

    def __init__(self, width: int, dilation: int, groups: int, kernel_size: int = 7):
        super().__init__()
        self.block = nn.Sequential(
            Snake(width),
            weight_norm(
                nn.Conv1d(
                    width, width, kernel_size, dilation=dilation, padding=(kernel_size - 1) * dilation // 2,
                    groups=groups,
                )
            ),
            Snake(width),
            weight_norm(nn.Conv1d(width, width, 1)),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class EncoderBlock(nn.Module):
    """[B, C, T] → [B, 2C, T / stride]."""

    def __init__(self, width: int, stride: int, groups: int):
        super().__init__()
        self.block = nn.Sequential(
            *(ResidualUnit(width, dilation, groups) for dilation in DILATIONS),
            Snake(width),
            weight_norm(nn.Conv1d(width, 2 * width, 2 * stride, stride, padding=math.ceil(stride / 2))),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out


class SnacAttention(nn.Module):
    """Attention of a step to its own window of W steps, added to the input [B, C, T]; T is a multiple of W. Rotary
    positions (halves) begin anew in each window."""

    def __init__(self, width: int, window: int):
        super().__init__()
        self.window, self.num_heads = window, width // HEAD_WIDTH
        self.norm = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.rel_pos = RotaryFrequencies(HEAD_WIDTH)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x.transpose(1, 2))
        heads = self.to_qkv(normed).unflatten(-1, (3, self.num_heads, HEAD_WIDTH)).unflatten(1, (-1, self.window))
        queries, keys, values = heads.permute(3, 0, 4, 1, 2, 5)  # [B, H, T / W, W, d] each
        rotate = self.rel_pos.make_rotation(self.window)
        mixed = scaled_dot_product_attention(turn(queries, rotate), turn(keys, rotate), values)
        out: Tensor = self.to_out(mixed.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2))
        return x + out.transpose(1, 2)


class RotaryFrequencies(nn.Module):
    """The frequencies of rotary positions (arXiv 2104.09864), which the authors store."""

    inv_freq: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("inv_freq", 1.0 / (10000 ** (torch.arange(0, width, 2).float() / width)))

    def make_rotation(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine of each position, [length, d]."""
        angles = torch.outer(torch.arange(length, device=self.inv_freq.device).float(), self.inv_freq).repeat(1, 2)
        return angles.cos(), angles.sin()


def turn(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Vectors [..., W, d] turned by their positions; dimension i goes with i + d/2."""
    cos, sin = (part.to(x.dtype) for part in rotation)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class SnacEncoder(nn.Module):
    """Sounds [B, 1, T] → latents [B, D, N]."""

    def __init__(self, width: int, rates: Sequence[int], depthwise: bool, window: int | None):
        super().__init__()
        layers: list[nn.Module] = [weight_norm(nn.Conv1d(1, width, 7, padding=3))]
        for stride in rates:
            layers.append(EncoderBlock(width, stride, width if depthwise else 1))
            width *= 2
        if window is not None:
            layers.append(SnacAttention(width, window))
        layers.append(weight_norm(nn.Conv1d(width, width, 7, padding=3, groups=width if depthwise else 1)))
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out


class NoiseBlock(nn.Module):
    """Adds noise [B, 1, T] with an amplitude that follows the signal [B, C, T]."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = weight_norm(nn.Conv1d(width, width, 1, bias=False))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        return x + noise * self.linear(x)


class DecoderBlock(nn.Module):
    """[B, C, T] → [B, C / 2, T · stride]; noise: [B, 1, T · stride], of blocks that have it."""

    def __init__(self, width: int, stride: int, noise: bool, depthwise: bool):
        super().__init__()
        half = width // 2
        self.block = nn.Sequential(
            Snake(width),
            weight_norm(
                nn.ConvTranspose1d(
                    width, half, 2 * stride, stride, padding=math.ceil(stride / 2), output_padding=stride % 2
                )
            ),
            *([NoiseBlock(half)] if noise else []),
            *(ResidualUnit(half, dilation, half if depthwise else 1) for dilation in DILATIONS),
        )

    def forward(self, x: Tensor, noise: Tensor | None) -> Tensor:
        for layer in self.block:
            if not isinstance(layer, NoiseBlock):
                x = layer(x)
            elif noise is not None:
                x = layer(x, noise)
        return x


class SnacDecoder(nn.Module):
    """Quantized latents [B, D, N] → sounds [B, 1, T]."""

    def __init__(
        self, latent_width: int, width: int, rates: Sequence[int], noise: bool, depthwise: bool, window: int | None
    ):
        super().__init__()
        self.rates = tuple(rates)
        layers: list[nn.Module] = [weight_norm(nn.Conv1d(latent_width, width, 7, padding=3))]
        if depthwise:
            layers = [
                weight_norm(nn.Conv1d(latent_width, latent_width, 7, padding=3, groups=latent_width)),
                weight_norm(nn.Conv1d(latent_width, width, 1)),
            ]
        if window is not None:
            layers.append(SnacAttention(width, window))
        for stride in rates:
            layers.append(DecoderBlock(width, stride, noise, depthwise))
            width //= 2
        layers += [Snake(width), weight_norm(nn.Conv1d(width, 1, 7, padding=3)), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def list_noise_lengths(self, num_steps: int) -> Iterator[int]:
        """Samples of noise that each block takes for so many latents."""
        for rate in self.rates:
            num_steps *= rate
            yield num_steps

    def forward(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """noise: [B, 1, S], that of all blocks in their order; None for none."""
        parts = None if noise is None else iter(noise.split(list(self.list_noise_lengths(x.shape[-1])), -1))
        for layer in self.model:
            x = layer(x, parts and next(parts)) if isinstance(layer, DecoderBlock) else layer(x)
        return x

"""Periodic activations for sound: x + sin²(αx) / α (Snake, arXiv 2006.08195), and how they are kept from aliasing.

SnakeBeta has a magnitude of its own, and runs between an up- and a downsampler (BigVGAN, arXiv 2206.04658).

Shapes: B batch, C channels, T samples.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, conv_transpose1d, pad

EPSILON = 1e-9


class Snake(nn.Module):
    """[B, C, T] → the same shape, with one frequency a channel."""

    def __init__(self, num_channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, num_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.alpha + EPSILON).reciprocal() * torch.sin(self.alpha * x).square()


class SnakeBeta(nn.Module):
    """[B, C, T] → the same shape, with one frequency and one magnitude a channel, both stored as logarithms."""

    def __init__(self, num_channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(num_channels))
        self.beta = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        alpha, beta = self.alpha.exp()[:, None], self.beta.exp()[:, None]  # [C, 1]
        return x + (beta + EPSILON).reciprocal() * torch.sin(x * alpha).square()


class AntiAliased(nn.Module):
    """An activation at twice the rate, between a windowed-sinc up- and downsampler: [B, C, T] → the same shape."""

    kernel: Tensor

    def __init__(self, activation: nn.Module, ratio: int = 2, kernel_size: int = 12):
        super().__init__()
        self.act, self.ratio, self.kernel_size = activation, ratio, kernel_size
        kernel = torch.tensor(design_lowpass(0.5 / ratio, 0.6 / ratio, kernel_size))
        self.register_buffer("kernel", kernel[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.downsample(self.act(self.upsample(x)))

    def upsample(self, x: Tensor) -> Tensor:
        """[B, C, T] → [B, C, ratio · T]."""
        num_channels = x.shape[1]
        margin = self.kernel_size // self.ratio - 1
        left = margin * self.ratio + (self.kernel_size - self.ratio) // 2
        right = margin * self.ratio + (self.kernel_size - self.ratio + 1) // 2
        kernel = self.kernel.expand(num_channels, -1, -1)
        x = pad(x, (margin, margin), mode="replicate")
        x = self.ratio * conv_transpose1d(x, kernel, stride=self.ratio, groups=num_channels)
        return x[..., left:-right]

    def downsample(self, x: Tensor) -> Tensor:
        """[B, C, ratio · T] → [B, C, T]."""
        num_channels = x.shape[1]
        half = self.kernel_size // 2
        x = pad(x, (half - (self.kernel_size + 1) % 2, half), mode="replicate")
        return conv1d(x, self.kernel.expand(num_channels, -1, -1), stride=self.ratio, groups=num_channels)


@lru_cache
def design_lowpass(cutoff: float, half_width: float, kernel_size: int) -> tuple[float, ...]:
    """A sinc filter under a Kaiser window, of sum 1. cutoff, half_width: in cycles a sample."""
    half = kernel_size // 2
    attenuation = 2.285 * (half - 1) * math.pi * 4 * half_width + 7.95  # dB
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    elif attenuation >= 21:
        beta = 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    else:
        beta = 0.0
    window = torch.kaiser_window(kernel_size, beta=beta, periodic=False, device="cpu")
    time = torch.arange(kernel_size, device="cpu") - half + (0.5 if kernel_size % 2 == 0 else 0)
    kernel = 2 * cutoff * window * torch.sinc(2 * cutoff * time)
    return tuple((kernel / kernel.sum()).tolist())

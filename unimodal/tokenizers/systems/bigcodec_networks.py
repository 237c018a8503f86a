"""BigCodec's encoder and decoder: DAC's, with anti-aliased SnakeBeta and an LSTM at the coarsest rate.

Names within are the authors' own (arXiv 2409.05377, Aria-K-Alethia/BigCodec vq/).

Shapes: B batch, C channels, T samples or steps, D latent width.
"""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from unimodal.tokenizers.parts.trunks.seanet import SkipLstm
from unimodal.tokenizers.parts.trunks.snake import AntiAliased, SnakeBeta


class BigCodecSettings(BaseModel):
    """width: channels of the encoder's first convolution, which every stride doubles. latent_width: D. decoder_width:
    channels of the decoder's first convolution, which every stride halves. strides: in the encoder's order; decoder_
    strides in its own. dilations: of the three residual units at each rate. lstm_layers: 0 for none."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    width: int = Field(default=48, ge=1)
    latent_width: int = Field(default=1024, ge=1)
    decoder_width: int = Field(default=1536, ge=1)
    strides: tuple[int, ...] = Field(default=(2, 2, 2, 5, 5), min_length=1)
    decoder_strides: tuple[int, ...] = Field(default=(5, 5, 2, 2, 2), min_length=1)
    dilations: tuple[int, ...] = (1, 3, 9)
    lstm_layers: int = Field(default=2, ge=0)
    bidirectional: bool = False

    @property
    def samples_per_code(self) -> int:
        """Samples of a step of latents."""
        return math.prod(self.strides)


def make_activation(num_channels: int) -> nn.Module:
    """SnakeBeta at twice the rate, on [B, C, T]."""
    return AntiAliased(SnakeBeta(num_channels))


def make_conv(channels_in: int, channels_out: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Module:
    """A convolution with weight normalization; T is kept, or divided by the stride."""
    padding = (stride + 1) // 2 if stride > 1 else (kernel - 1) * dilation // 2
    conv = nn.Conv1d(channels_in, channels_out, kernel, stride=stride, dilation=dilation, padding=padding)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return weight_norm(conv)


class SnakeUnit(nn.Module):
    """[B, C, T] → the same shape: a dilated and a pointwise convolution beside the identity."""

    def __init__(self, num_channels: int, dilation: int):
        super().__init__()
        self.block = nn.Sequential(
            make_activation(num_channels),
            make_conv(num_channels, num_channels, 7, dilation=dilation),
            make_activation(num_channels),
            make_conv(num_channels, num_channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class DownBlock(nn.Module):
    """[B, C, T] → [B, 2 C, T / stride]."""

    def __init__(self, num_channels: int, stride: int, dilations: tuple[int, ...]):
        super().__init__()
        self.block = nn.Sequential(
            *(SnakeUnit(num_channels, dilation) for dilation in dilations),
            make_activation(num_channels),
            make_conv(num_channels, 2 * num_channels, 2 * stride, stride),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class UpBlock(nn.Module):
    """[B, C, T] → [B, C', T · stride]."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, dilations: tuple[int, ...]):
        super().__init__()
        padding = (stride + 1) // 2
        conv = nn.ConvTranspose1d(
            channels_in, channels_out, 2 * stride, stride=stride, padding=padding, output_padding=stride % 2
        )
        self.block = nn.Sequential(
            make_activation(channels_in),
            weight_norm(conv),
            *(SnakeUnit(channels_out, dilation) for dilation in dilations),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class BigEncoder(nn.Module):
    """[B, 1, T] → [B, D, T / samples_per_code], T a multiple."""

    def __init__(self, settings: BigCodecSettings):
        super().__init__()
        width = settings.width
        layers = [make_conv(1, width, 7)]
        for stride in settings.strides:
            layers.append(DownBlock(width, stride, settings.dilations))
            width *= 2
        if settings.lstm_layers:
            layers.append(SkipLstm(width, settings.lstm_layers, settings.bidirectional, halve=True))
        layers += [make_activation(width), make_conv(width, settings.latent_width, 3)]
        self.block = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class BigDecoder(nn.Module):
    """[B, D, N] → [B, 1, N · samples_per_code] in (-1, 1)."""

    def __init__(self, settings: BigCodecSettings):
        super().__init__()
        width = settings.decoder_width
        layers = [make_conv(settings.latent_width, width, 7)]
        if settings.lstm_layers:
            layers.append(SkipLstm(width, settings.lstm_layers, settings.bidirectional, halve=True))
        for level, stride in enumerate(settings.decoder_strides):
            wide, narrow = width // 2**level, width // 2 ** (level + 1)
            layers.append(UpBlock(wide, narrow, stride, settings.dilations))
        narrow = width // 2 ** len(settings.decoder_strides)
        self.model = nn.Sequential(*layers, make_activation(narrow), make_conv(narrow, 1, 7), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.model(z)

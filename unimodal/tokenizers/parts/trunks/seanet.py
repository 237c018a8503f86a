"""SEANet: the convolutional encoder and decoder of EnCodec (arXiv 2210.13438), and what its descendants changed.

The encoder runs through the strides in the reverse of the order that they are given in, which is the decoder's.

Shapes: B batch, C channels, T samples or steps, D latent width.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.parametrizations import weight_norm

from unimodal.tokenizers.parts.trunks.snake import Snake

Padding = Literal["reflect", "constant", "replicate"]


class SeanetSettings(BaseModel):
    """Sizes and conventions of both trunks.

    width: channels of the first convolution; every stride doubles them. latent_width: D. strides: in the decoder's
    order. num_blocks: residual blocks a stride, block i dilated by dilation_base^i. compress: by how much a block
    narrows its inside. true_skip: a block's shortcut is the identity, and no convolution. lstm_layers: of the LSTM
    with a skip at the coarsest rate, 0 for none; bidirectional: of the encoder's alone. causal: padding in front alone.
    padding: of convolutions, which never leave a sample out. normalized: weight normalization.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    width: int = Field(default=32, ge=1)
    latent_width: int = Field(default=128, ge=1)
    strides: tuple[int, ...] = Field(default=(8, 5, 4, 2), min_length=1)
    num_blocks: int = Field(default=1, ge=0)
    dilation_base: int = Field(default=2, ge=1)
    kernel: int = Field(default=7, ge=1)
    last_kernel: int = Field(default=7, ge=1)
    block_kernel: int = Field(default=3, ge=1)
    compress: int = Field(default=2, ge=1)
    true_skip: bool = False
    lstm_layers: int = Field(default=2, ge=0)
    bidirectional: bool = False
    activation: Literal["elu", "snake"] = "elu"
    causal: bool = False
    padding: Padding = "reflect"
    normalized: bool = True

    @property
    def samples_per_code(self) -> int:
        """Samples of a step of latents."""
        return math.prod(self.strides)


def pad_samples_around(x: Tensor, left: int, right: int, padding: Padding) -> Tensor:
    """[B, C, T] → [B, C, left + T + right]. A signal too short to be reflected is filled up with zeros first."""
    if padding != "reflect":
        return pad(x, (left, right), mode=padding)
    spare = max(0, max(left, right) - x.shape[-1] + 1)
    padded = pad(pad(x, (0, spare)), (left, right), mode="reflect")
    return padded[..., : padded.shape[-1] - spare]


class PaddedConv1d(nn.Module):
    """A convolution that gives ceil(T / stride) steps: padded in front alone, or about evenly, more in front."""

    def __init__(
        self, settings: SeanetSettings, channels_in: int, channels_out: int, kernel: int, stride: int = 1,
        dilation: int = 1,
    ):  # fmt: skip
        super().__init__()
        self.causal, self.padding = settings.causal, settings.padding
        self.stride, self.spread = stride, (kernel - 1) * dilation
        conv = nn.Conv1d(channels_in, channels_out, kernel, stride=stride, dilation=dilation)
        self.conv = weight_norm(conv) if settings.normalized else conv

    def forward(self, x: Tensor) -> Tensor:
        total = self.spread - (self.stride - 1)
        behind = 0 if self.causal else total // 2
        left = total - behind
        return self.conv(pad_samples_around(x, left, behind + -x.shape[-1] % self.stride, self.padding))


class TrimmedConvTranspose1d(nn.Module):
    """A transposed convolution of twice the stride that gives T · stride samples: what is too much is cut off behind,
    or about evenly, more in front."""

    def __init__(self, settings: SeanetSettings, channels_in: int, channels_out: int, stride: int):
        super().__init__()
        self.causal, self.stride = settings.causal, stride
        conv = nn.ConvTranspose1d(channels_in, channels_out, 2 * stride, stride=stride)
        self.transposed = weight_norm(conv) if settings.normalized else conv

    def forward(self, x: Tensor) -> Tensor:
        behind = self.stride if self.causal else self.stride // 2
        wave: Tensor = self.transposed(x)
        return wave[..., self.stride - behind : wave.shape[-1] - behind]


def make_activation(settings: SeanetSettings, num_channels: int) -> nn.Module:
    """The activation of a trunk, on [B, C, T]."""
    return Snake(num_channels) if settings.activation == "snake" else nn.ELU()


class SeanetBlock(nn.Module):
    """[B, C, T] → the same shape: a dilated and a pointwise convolution beside a shortcut."""

    def __init__(self, settings: SeanetSettings, num_channels: int, dilation: int):
        super().__init__()
        inside = num_channels // settings.compress
        self.block = nn.Sequential(
            make_activation(settings, num_channels),
            PaddedConv1d(settings, num_channels, inside, settings.block_kernel, dilation=dilation),
            make_activation(settings, inside),
            PaddedConv1d(settings, inside, num_channels, 1),
        )
        self.shortcut = nn.Identity() if settings.true_skip else PaddedConv1d(settings, num_channels, num_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.block(x)


class SkipLstm(nn.Module):
    """[B, C, T] → [B, C, T], or [B, 2 C, T] in both directions: what an LSTM adds to its input."""

    def __init__(self, num_channels: int, num_layers: int, bidirectional: bool = False, halve: bool = False):
        super().__init__()
        hidden = num_channels // 2 if halve and bidirectional else num_channels
        self.lstm = nn.LSTM(num_channels, hidden, num_layers, bidirectional=bidirectional)
        self.copies = 2 * hidden // num_channels if bidirectional else 1

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(2, 0, 1)  # [T, B, C]
        return (self.lstm(x)[0] + x.repeat(1, 1, self.copies)).permute(1, 2, 0)


class SeanetEncoder(nn.Module):
    """[B, 1, T] → [B, D, ceil(T / samples_per_code)]."""

    def __init__(self, settings: SeanetSettings):
        super().__init__()
        width = settings.width
        layers: list[nn.Module] = [PaddedConv1d(settings, 1, width, settings.kernel)]
        for stride in reversed(settings.strides):
            layers += list_blocks(settings, width)
            layers += [make_activation(settings, width), PaddedConv1d(settings, width, 2 * width, 2 * stride, stride)]
            width *= 2
        if settings.lstm_layers:
            layers.append(SkipLstm(width, settings.lstm_layers, settings.bidirectional))
            width *= 2 if settings.bidirectional else 1
        layers += [
            make_activation(settings, width),
            PaddedConv1d(settings, width, settings.latent_width, settings.last_kernel),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class SeanetDecoder(nn.Module):
    """[B, D, N] → [B, 1, N · samples_per_code]."""

    def __init__(self, settings: SeanetSettings):
        super().__init__()
        width = settings.width * 2 ** len(settings.strides)
        layers: list[nn.Module] = [PaddedConv1d(settings, settings.latent_width, width, settings.kernel)]
        if settings.lstm_layers:
            layers.append(SkipLstm(width, settings.lstm_layers))
        for stride in settings.strides:
            layers += [
                make_activation(settings, width),
                TrimmedConvTranspose1d(settings, width, width // 2, stride),
            ]
            width //= 2
            layers += list_blocks(settings, width)
        layers += [make_activation(settings, width), PaddedConv1d(settings, width, 1, settings.last_kernel)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z)


def list_blocks(settings: SeanetSettings, num_channels: int) -> list[nn.Module]:
    """The residual blocks at one rate."""
    return [SeanetBlock(settings, num_channels, settings.dilation_base**index) for index in range(settings.num_blocks)]

"""Judges of sounds, as published codecs are trained by; each gives the maps of all its layers, its judgements last.

- `PeriodJudge`: samples folded by a period (HiFi-GAN, arXiv 2010.05646).
- `BandJudge`: bands of a complex spectrum, each by a stack of its own (DAC, arXiv 2306.06546).
- `SpectrumJudge`: a complex spectrum, dilated in time (EnCodec, arXiv 2210.13438).
- `ResolutionJudge`: magnitudes (UnivNet, arXiv 2106.07889, as WavTokenizer has it).

A sound that is shorter than a judge takes is filled up with silence.

Shapes: B batch, T samples, F frames, K frequency bins, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, pad
from torch.nn.utils.parametrizations import weight_norm

from unimodal.tokenizers.losses.spectra import fill_up

BANDS = ((0.0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))  # shares of the bins


def make_conv(
    channels_in: int,
    channels_out: int,
    kernel: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    dilation: int = 1,
    normalized: bool = True,
) -> nn.Module:
    """A 2-D convolution that keeps, or divides by its strides, the two axes; dilated along the first."""
    padding = ((kernel[0] - 1) * dilation // 2, (kernel[1] - 1) // 2)
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, (dilation, 1))
    return weight_norm(conv) if normalized else conv


def run_stack(layers: nn.ModuleList, h: Tensor, slope: float) -> list[Tensor]:
    """The maps behind every layer, each activated."""
    maps = []
    for layer in layers:
        h = leaky_relu(layer(h), slope)
        maps.append(h)
    return maps


class PeriodJudge(nn.Module):
    """[B, T] → maps [B, C, T / period …, period]. whole: as DAC, a sound of whole periods is reflected by one more."""

    def __init__(self, period: int, width: int = 32, whole: bool = False):
        super().__init__()
        self.period, self.whole = period, whole
        widths = (1, width, 4 * width, 16 * width, 32 * width)
        self.layers = nn.ModuleList(
            make_conv(a, b, (5, 1), (3, 1)) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.layers.append(make_conv(widths[-1], widths[-1], (5, 1)))
        self.out = make_conv(widths[-1], 1, (3, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = fill_up(x, self.period + 1)
        spare = self.period - x.shape[-1] % self.period
        if spare < self.period or self.whole:
            x = pad(x[:, None], (0, spare), mode="reflect")[:, 0]
        maps = run_stack(self.layers, x.unflatten(1, (-1, self.period))[:, None], 0.1)
        return [*maps, self.out(maps[-1])]


class BandJudge(nn.Module):
    """[B, T] → maps [B, C, F, k] of every band in turn, then the judgements of all [B, 1, F, K']."""

    window: Tensor

    def __init__(self, window_size: int, width: int = 32):
        super().__init__()
        self.window_size, self.hop = window_size, window_size // 4
        self.register_buffer("window", torch.hann_window(window_size), persistent=False)
        num_bins = window_size // 2 + 1
        self.edges = [(int(low * num_bins), int(high * num_bins)) for low, high in BANDS]
        self.stacks = nn.ModuleList()
        for _ in BANDS:
            stack = [make_conv(2, width, (3, 9))]
            stack += [make_conv(width, width, (3, 9), (1, 2)) for _ in range(3)]
            self.stacks.append(nn.ModuleList([*stack, make_conv(width, width, (3, 3))]))
        self.out = make_conv(width, 1, (3, 3))

    def transform(self, x: Tensor) -> Tensor:
        """[B, T] → real and imaginary parts [B, 2, ceil(T / hop), K]: frames lie as steps of a convolution do."""
        margin = (self.window_size - self.hop) // 2
        x = fill_up(x, margin + self.hop)
        spare = -x.shape[-1] % self.hop
        x = pad(x[:, None], (margin, margin + spare), mode="reflect")[:, 0]
        spectrum = torch.stft(x, self.window_size, self.hop, window=self.window, return_complex=True)[..., 2:-2]
        return torch.view_as_real(spectrum).permute(0, 3, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        spectrum = self.transform(x)
        maps, ends = [], []
        for (low, high), stack in zip(self.edges, self.stacks, strict=True):
            assert isinstance(stack, nn.ModuleList)
            maps += run_stack(stack, spectrum[..., low:high], 0.1)
            ends.append(maps[-1])
        return [*maps, self.out(torch.cat(ends, dim=-1))]


class SpectrumJudge(nn.Module):
    """[B, T] → maps [B, C, F, K / 2^i], then judgements [B, 1, F, K / 8]."""

    window: Tensor

    def __init__(self, window_size: int, width: int = 32):
        super().__init__()
        self.window_size, self.hop = window_size, window_size // 4
        self.register_buffer("window", torch.hann_window(window_size), persistent=False)
        layers = [make_conv(2, width, (3, 9), normalized=False)]  # as the authors' code has it
        layers += [make_conv(width, width, (3, 9), (1, 2), dilation) for dilation in (1, 2, 4)]
        self.layers = nn.ModuleList([*layers, make_conv(width, width, (3, 3))])
        self.out = make_conv(width, 1, (3, 3))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = fill_up(x, self.window_size)
        spectrum = torch.stft(
            x, self.window_size, self.hop, window=self.window, center=False, return_complex=True
        ) / self.window.square().sum().sqrt()  # fmt: skip
        maps = run_stack(self.layers, torch.view_as_real(spectrum).permute(0, 3, 2, 1), 0.2)
        return [*maps, self.out(maps[-1])]


class ResolutionJudge(nn.Module):
    """[B, T] → maps [B, C, K / 2^i, F / …] of magnitudes under no window, then judgements."""

    window: Tensor

    def __init__(self, window_size: int, width: int = 64):
        super().__init__()
        self.window_size, self.hop = window_size, window_size // 4
        self.register_buffer("window", torch.ones(window_size), persistent=False)
        self.layers = nn.ModuleList(
            [
                make_conv(1, width, (7, 5), (2, 2)),
                make_conv(width, width, (5, 3), (2, 1)),
                make_conv(width, width, (5, 3), (2, 2)),
                make_conv(width, width, (3, 3), (2, 1)),
                make_conv(width, width, (3, 3), (2, 2)),
            ]
        )
        self.out = make_conv(width, 1, (3, 3))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = fill_up(x, self.window_size // 2 + 1)
        spectrum = torch.stft(x, self.window_size, self.hop, window=self.window, return_complex=True)
        maps = run_stack(self.layers, spectrum.abs()[:, None], 0.1)
        return [*maps, self.out(maps[-1])]

"""Waveform heads: decoded log-mel frames → samples.

``griffin_lim`` needs no weights. ``istft`` is Vocos (arXiv 2306.00814): ConvNeXt blocks at the frame rate predict the
magnitude and phase of every bin, and an inverse Fourier transform makes the signal; no upsampling, so it is cheap.

Shapes: B batch, C channels, F frames, K frequency bins, M mel bands, T samples.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unimodal.tokenizers.nano.audio_mel import LogMel, Spectrum, griffin_lim


class MaskedConvNeXt(nn.Module):
    """A ConvNeXt block in one dimension (arXiv 2201.03545): depthwise convolution, channel norm, two linear maps.

    The norm is over channels of one frame only and the input is zeroed past each item's end, so the output of a real
    frame never depends on padding nor on frames farther than ``dilation * (kernel - 1) / 2``.
    """

    def __init__(self, width: int, expansion: int, kernel: int = 7, dilation: int = 1):
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.mix = nn.Conv1d(width, width, kernel, padding=padding, dilation=dilation, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x: [B, C, F] already zero where mask [B, 1, F] is; returns the same."""
        h = self.norm(self.mix(x).transpose(1, 2))  # [B, F, C]
        h = self.down(nn.functional.relu(self.up(h))) * self.scale
        return (x + h.transpose(1, 2)) * mask


class GriffinLimHead(nn.Module):
    """No weights: magnitudes from the mel bands, phase by 40 iterations from a seeded start."""

    def __init__(self, mel: LogMel, iterations: int = 40):
        super().__init__()
        self.mel, self.iterations = [mel], iterations  # in a list: the owner of the transform is the tokenizer

    def forward(self, log_mel: Tensor, mask: Tensor) -> Tensor:
        """log_mel: [B, M, F], mask: [B, 1, F] → [B, T]."""
        mel = self.mel[0]
        return griffin_lim(mel.spectrum, mel.magnitude(log_mel), mask, self.iterations)


class IstftHead(nn.Module):
    """Vocos-style: log-mel → ConvNeXt × depth → magnitude and phase → inverse transform."""

    def __init__(self, num_mels: int, width: int, depth: int, expansion: int, window_size: int, hop: int):
        super().__init__()
        self.spectrum = Spectrum(window_size, hop)
        self.stem = nn.Conv1d(num_mels, width, 7, padding=3)
        self.stem_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(MaskedConvNeXt(width, expansion) for _ in range(depth))
        self.out_norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, window_size + 2)  # 2·K: log magnitudes and phases

    def forward(self, log_mel: Tensor, mask: Tensor) -> Tensor:
        """log_mel: [B, M, F], mask: [B, 1, F] → [B, T]."""
        h = self.stem_norm(self.stem(log_mel * mask).transpose(1, 2)).transpose(1, 2) * mask
        for block in self.blocks:
            h = block(h, mask)
        log_magnitude, phase = self.out(self.out_norm(h.transpose(1, 2))).transpose(1, 2).chunk(2, dim=1)  # [B, K, F]
        magnitude = log_magnitude.float().clamp(max=6.0).exp()
        return self.spectrum.istft(torch.polar(magnitude, phase.float()), mask)

"""Inverse-STFT head: features of a frame → magnitude and phase of its spectrum → samples (Vocos, arXiv 2306.00814).

Shapes: B batch, N frames, D width, K = window / 2 + 1 frequency bins, T samples.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import fold

#: "same": N · hop samples, half of what windows overlap cut off at both ends; "center": (N − 1) · hop, as torch.istft
SpectrumPadding = Literal["same", "center"]
LOUDEST = 100.0


class InverseStft(nn.Module):
    """complex [B, K, N] → [B, T] under a Hann window."""

    window: Tensor

    def __init__(self, window_size: int, hop: int, padding: SpectrumPadding = "same"):
        super().__init__()
        if hop < 1 or window_size < 2 * hop or (window_size - hop) % 2:
            raise ValueError(f"a window of {window_size} samples needs a hop of at most half, evenly; got {hop}")
        self.window_size, self.hop, self.padding = window_size, hop, padding
        self.register_buffer("window", torch.hann_window(window_size))

    def forward(self, spectrum: Tensor) -> Tensor:
        if self.padding == "center":
            return torch.istft(spectrum, self.window_size, self.hop, window=self.window, center=True)
        num_frames, margin = spectrum.shape[-1], (self.window_size - self.hop) // 2
        frames = torch.fft.irfft(spectrum, self.window_size, dim=1) * self.window[:, None]  # [B, window, N]
        power = self.window.square()[None, :, None].expand(1, -1, num_frames)
        total = (num_frames - 1) * self.hop + self.window_size
        shape = {"output_size": (1, total), "kernel_size": (1, self.window_size), "stride": (1, self.hop)}
        inside = slice(margin, total - margin)
        return fold(frames, **shape)[:, 0, 0, inside] / fold(power, **shape)[:, 0, 0, inside]


class SpectrumHead(nn.Module):
    """[B, N, D] → [B, T]: log magnitude, at most `LOUDEST` when it is one, and phase of every bin."""

    def __init__(self, width: int, window_size: int, hop: int, padding: SpectrumPadding = "same"):
        super().__init__()
        self.out = nn.Linear(width, window_size + 2)
        self.istft = InverseStft(window_size, hop, padding)
        nn.init.trunc_normal_(self.out.weight, std=0.02)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            log_magnitude, phase = self.out(x.float()).transpose(1, 2).chunk(2, dim=1)  # [B, K, N]
            magnitude = log_magnitude.exp().clamp(max=LOUDEST)
            return self.istft(magnitude * torch.complex(phase.cos(), phase.sin()))

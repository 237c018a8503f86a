"""Mel bands of a magnitude spectrum at any rate, for vocoders and losses: as torchaudio gives them with power 1.

Shapes: B batch, T samples, F frames, M bands, W window.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


class MelBands(nn.Module):
    """[B, T] → amplitudes [B, M, F].

    scale, norm: of the filters ("htk" or "slaney"; "slaney" or None). padding: "center" reflects half a window at both
    ends, T // hop + 1 frames; "same" what windows overlap, T // hop frames of whole hops.
    """

    window: Tensor
    bands: Tensor

    def __init__(
        self,
        sample_rate_hz: int,
        window_size: int,
        hop: int,
        num_mels: int,
        lowest_hz: float = 0.0,
        highest_hz: float | None = None,
        scale: Literal["htk", "slaney"] = "htk",
        norm: Literal["slaney"] | None = None,
        padding: Literal["center", "same"] = "center",
        persistent: bool = False,
    ):
        super().__init__()
        from torchaudio.functional import melscale_fbanks

        self.window_size, self.hop, self.padding = window_size, hop, padding
        top_hz = sample_rate_hz / 2 if highest_hz is None else highest_hz
        with torch.device("cpu"):  # the filters are looked at while they are made
            bands = melscale_fbanks(
                window_size // 2 + 1, lowest_hz, top_hz, num_mels, sample_rate_hz, norm=norm, mel_scale=scale
            )
        self.register_buffer("window", torch.hann_window(window_size), persistent=persistent)
        self.register_buffer("bands", bands, persistent=persistent)  # [W / 2 + 1, M]

    @property
    def fewest_samples(self) -> int:
        """How many samples it takes to reflect what is padded."""
        return (self.window_size // 2 if self.padding == "center" else (self.window_size - self.hop) // 2) + 1

    def forward(self, x: Tensor) -> Tensor:
        """x: float [B, T] with T ≥ `fewest_samples` → amplitudes [B, M, F]."""
        same = self.padding == "same"
        if same:
            margin = (self.window_size - self.hop) // 2
            x = pad(x, (margin, margin), mode="reflect")
        spectrum = torch.stft(x, self.window_size, self.hop, window=self.window, center=not same, return_complex=True)
        return (spectrum.abs().transpose(1, 2) @ self.bands).transpose(1, 2)

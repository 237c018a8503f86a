"""How far the spectra of two sounds are apart: mel bands at one or several resolutions, and magnitudes at several.

Published forms:
- `vocos` (arXiv 2306.00814; WavTokenizer too): |ln m - ln m̂| of 100 mel bands at one resolution, at least 1e-7.
- `dac` (arXiv 2306.06546): |log₁₀ m - log₁₀ m̂| of few bands to many at seven resolutions, added up, at least 1e-5.

A sound that is shorter than a window takes is filled up with silence.

Shapes: B batch, T samples, M bands, F frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, pad

from unimodal.tokenizers.parts.mel_bands import MelBands

MelForm = Literal["vocos", "dac"]
#: form → windows in samples, mel bands of each
MEL_SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "vocos": ((1024,), (100,)),
    "dac": ((32, 64, 128, 256, 512, 1024, 2048), (5, 10, 20, 40, 80, 160, 320)),
}
STFT_WINDOWS = (2048, 512)  # DAC's


class MelLoss(nn.Module):
    """The distance of log mel bands; the hop is a quarter of a window. windows, bands: in place of the form's."""

    def __init__(
        self, sample_rate_hz: int, form: MelForm = "vocos", windows: Sequence[int] = (), bands: Sequence[int] = ()
    ):
        super().__init__()
        windows, bands = windows or MEL_SIZES[form][0], bands or MEL_SIZES[form][1]
        if len(windows) != len(bands):
            raise ValueError(f"each window of the mel loss has its number of bands; got {list(windows)}, {list(bands)}")
        self.form = form
        self.scales = nn.ModuleList(
            MelBands(
                sample_rate_hz,
                window,
                window // 4,
                count,
                scale="htk" if form == "vocos" else "slaney",
                norm=None if form == "vocos" else "slaney",
            )
            for window, count in zip(windows, bands, strict=True)
        )

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        """made, real: [B, T] → scalar."""
        fewest = max(scale.fewest_samples for scale in self.scales if isinstance(scale, MelBands))
        made, real = fill_up(made, fewest), fill_up(real, fewest)
        total = made.new_zeros((), dtype=torch.float32)
        with torch.autocast(made.device.type, enabled=False):
            for scale in self.scales:
                a, b = scale(made.float()), scale(real.float())
                if self.form == "vocos":
                    total = total + l1_loss(a.clamp_min(1e-7).log(), b.clamp_min(1e-7).log())
                else:
                    total = total + l1_loss(a.clamp_min(1e-5).log10(), b.clamp_min(1e-5).log10())
        return total


class StftLoss(nn.Module):
    """DAC's multi-scale STFT loss, after DDSP (arXiv 2001.04643): for each window |m - m̂| + |log₁₀ m² - log₁₀ m̂²|, m at
    least 1e-5 in the logarithms; added up."""

    def __init__(self, windows: Sequence[int] = STFT_WINDOWS):
        super().__init__()
        self.windows = tuple(windows)

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        """made, real: [B, T] → scalar."""
        made, real = (fill_up(x, max(self.windows) // 2 + 1) for x in (made, real))
        total = made.new_zeros((), dtype=torch.float32)
        with torch.autocast(made.device.type, enabled=False):
            for size in self.windows:
                window = torch.hann_window(size, device=made.device)
                a, b = (
                    torch.stft(x.float(), size, size // 4, window=window, return_complex=True) for x in (made, real)
                )
                a, b = measure_magnitude(a), measure_magnitude(b)
                total = total + l1_loss(a, b) + 2 * l1_loss(a.clamp_min(1e-5).log10(), b.clamp_min(1e-5).log10())
        return total


def measure_magnitude(spectrum: Tensor) -> Tensor:
    """|spectrum|, with a finite gradient at 0."""
    return torch.view_as_real(spectrum).square().sum(-1).clamp_min(1e-12).sqrt()


def fill_up(x: Tensor, fewest: int) -> Tensor:
    """Sounds [B, T], with silence behind them where they are shorter than a window takes."""
    return pad(x, (0, max(0, fewest - x.shape[-1])))

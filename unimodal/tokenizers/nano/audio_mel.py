"""Waveforms ⇄ frames of a short-time Fourier transform ⇄ log-mel bands, so that F hops of samples are exactly F frames.

The signal is padded with (window − hop) / 2 zeros on both sides, never reflected: a frame past the end of a clip sees
the zeros that follow it whether the clip is alone or padded in a batch. ``istft`` inverts ``stft`` exactly.
Griffin-Lim (Griffin & Lim 1984, with the momentum of arXiv 1302.1700) is the waveform head that needs no training.

Shapes: B batch, T samples, F frames (F = T / hop), W window, K = W / 2 + 1 frequency bins, M mel bands.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Spectrum(nn.Module):
    """The transform and its inverse at one window and hop."""

    window: Tensor

    def __init__(self, window_size: int, hop: int):
        super().__init__()
        if window_size % hop or window_size < 2 * hop:
            raise ValueError(f"window_size {window_size} must be a multiple, two or more, of hop {hop}")
        self.window_size, self.hop = window_size, hop
        self.margin = (window_size - hop) // 2
        self.register_buffer("window", torch.hann_window(window_size), persistent=False)

    def stft(self, x: Tensor) -> Tensor:
        """x: [B, T], T a multiple of hop → complex [B, K, F]."""
        assert x.shape[-1] % self.hop == 0, "pad the signal to a multiple of the hop first"
        x = functional.pad(x, (self.margin, self.margin))
        return torch.stft(x, self.window_size, self.hop, window=self.window, center=False, return_complex=True)

    def istft(self, spectrum: Tensor, mask: Tensor | None = None) -> Tensor:
        """complex [B, K, F], mask [B, 1, F] or None → [B, T]: overlap-add divided by the window's power, margins cut
        off.

        A masked frame adds neither signal nor power, and the samples of its hop are zero: what comes out for a padded
        item is what comes out for the item alone.
        """
        num_frames = spectrum.shape[-1]
        if mask is None:
            mask = torch.ones(1, 1, num_frames, device=spectrum.device)
        frames = torch.fft.irfft(spectrum * mask, self.window_size, dim=1) * self.window[:, None]  # [B, W, F]
        total = (num_frames - 1) * self.hop + self.window_size
        shape = {"output_size": (1, total), "kernel_size": (1, self.window_size), "stride": (1, self.hop)}
        inside = slice(self.margin, total - self.margin)
        signal = functional.fold(frames, **shape)[:, 0, 0, inside]  # [B, T]
        envelope = functional.fold(self.window.square()[None, :, None] * mask, **shape)[:, 0, 0, inside]
        return signal / envelope.clamp_min(1e-3) * mask[:, 0].repeat_interleave(self.hop, dim=-1)


class LogMel(nn.Module):
    """Log-mel bands, shifted and scaled to about zero mean and unit deviation for speech."""

    bands: Tensor
    inverse_bands: Tensor

    def __init__(
        self,
        sample_rate_hz: int,
        window_size: int,
        hop: int,
        num_mels: int,
        floor: float,
        mean: float,
        deviation: float,
    ):
        super().__init__()
        from torchaudio.functional import melscale_fbanks

        self.spectrum = Spectrum(window_size, hop)
        self.floor, self.mean, self.deviation = floor, mean, deviation
        top_hz = sample_rate_hz / 2
        with torch.device("cpu"):  # constants, also where the rest is built without storage
            bands = melscale_fbanks(
                window_size // 2 + 1, 0.0, top_hz, num_mels, sample_rate_hz, norm="slaney", mel_scale="slaney"
            )
            self.register_buffer("bands", bands.T.contiguous(), persistent=False)  # [M, K]
            self.register_buffer("inverse_bands", torch.linalg.pinv(self.bands), persistent=False)  # [K, M]

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T], T a multiple of hop → [B, M, F], in no lower precision under autocast either."""
        with torch.autocast(x.device.type, enabled=False):
            mel = self.bands @ self.spectrum.stft(x).abs()
        return (mel.clamp_min(self.floor).log() - self.mean) / self.deviation

    def amplitude(self, log_mel: Tensor) -> Tensor:
        """[B, M, F] → mel amplitudes [B, M, F]; what lies at the floor is silence."""
        mel = (log_mel * self.deviation + self.mean).exp()
        return torch.where(mel <= 1.05 * self.floor, torch.zeros_like(mel), mel)

    def magnitude(self, log_mel: Tensor, iterations: int = 30) -> Tensor:
        """Non-negative magnitudes [B, K, F] whose mel bands are nearest: multiplicative updates from the
        pseudo-inverse."""
        mel = self.amplitude(log_mel)
        magnitude = (self.inverse_bands @ mel).clamp_min(1e-6)
        wanted, gram = self.bands.T @ mel, self.bands.T @ self.bands
        for _ in range(iterations):
            magnitude = magnitude * (wanted / (gram @ magnitude).clamp_min(1e-9))
        return magnitude


def griffin_lim(
    spectrum: Spectrum, magnitude: Tensor, mask: Tensor, iterations: int = 40, momentum: float = 0.95, seed: int = 0
) -> Tensor:
    """Magnitudes [B, K, F], mask [B, 1, F] → signal [B, T]. The first phase is drawn frame by frame from ``seed``:
    the same for every row and for every length, so that a padded item sounds like the item alone."""
    num_frames = magnitude.shape[-1]
    generator = torch.Generator().manual_seed(seed)
    turns = torch.rand(num_frames, magnitude.shape[1], generator=generator).T.to(magnitude.device)  # [K, F]
    phase = torch.polar(torch.ones_like(turns), 2 * torch.pi * turns)[None]
    before = torch.zeros_like(magnitude, dtype=torch.complex64)
    for _ in range(iterations):
        rebuilt = spectrum.stft(spectrum.istft(magnitude * phase, mask))
        ahead = rebuilt + momentum * (rebuilt - before)
        phase = ahead / ahead.abs().clamp_min(1e-9)
        before = rebuilt
    return spectrum.istft(magnitude * phase, mask)

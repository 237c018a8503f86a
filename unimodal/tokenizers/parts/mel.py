"""Log-mel bands as speech encoders and vocoders see a sound: Whisper's, Kaldi's filter bank, and amplitudes.

All take sounds of one length, since Whisper's floor is one of the whole sound and amplitudes are reflected: call them
on sounds as long as they are and pad the bands.

Shapes: B batch, T samples, F frames, M bands, W window.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


class WhisperMel(nn.Module):
    """Whisper's log-mel bands of 25 ms every 10 ms at 16 kHz (arXiv 2212.04356): Slaney's filters on the power, base
    ten, no quieter than 8 below the loudest band of the sound, (x + 4) / 4. The last frame is left out.

    A sound of fewer than 201 samples is filled up to them with silence, and gives one frame.
    """

    sample_rate_hz, window_size, hop = 16000, 400, 160
    #: samples that reflecting half a window takes
    least_samples = window_size // 2 + 1
    window: Tensor
    bands: Tensor

    def __init__(self, num_mels: int = 80):
        super().__init__()
        from torchaudio.functional import melscale_fbanks

        with torch.device("cpu"):  # it branches on its values, also where the rest is built without storage
            bands = melscale_fbanks(
                self.window_size // 2 + 1, 0.0, 8000.0, num_mels, self.sample_rate_hz, norm="slaney", mel_scale="slaney"
            )
        self.register_buffer("window", torch.hann_window(self.window_size), persistent=False)
        self.register_buffer("bands", bands.T.contiguous(), persistent=False)  # [M, W / 2 + 1]

    def count_frames(self, num_samples: int) -> int:
        """F of so many samples."""
        return max(num_samples, self.least_samples) // self.hop

    def forward(self, x: Tensor) -> Tensor:
        """x: float [B, T], 16 kHz, all real → [B, M, F]."""
        x = pad(x.float(), (0, max(0, self.least_samples - x.shape[-1])))
        spectrum = torch.stft(x, self.window_size, self.hop, window=self.window, return_complex=True)
        mel = self.bands @ spectrum[..., :-1].abs().square()
        log = mel.clamp_min(1e-10).log10()
        return (torch.maximum(log, log.amax((-2, -1), keepdim=True) - 8.0) + 4.0) / 4.0


class KaldiFbank(nn.Module):
    """Kaldi's log filter bank of 25 ms every 10 ms at 16 kHz, without dither: each frame without its mean, emphasised
    by 0.97, under Povey's window, its power in M triangles on the mel scale from 20 Hz to 8 kHz. A last frame that is
    not whole is left out.
    """

    sample_rate_hz, window_size, hop, transform_size = 16000, 400, 160, 512
    emphasis, lowest_hz = 0.97, 20.0
    window: Tensor
    bands: Tensor

    def __init__(self, num_mels: int = 128):
        super().__init__()
        window = torch.hann_window(self.window_size, periodic=False).pow(0.85)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("bands", self._make_bands(num_mels), persistent=False)  # [M, transform / 2 + 1]

    @classmethod
    def _make_bands(cls, num_mels: int) -> Tensor:
        """Triangles of equal width in mel; the highest frequency of the transform is in none."""
        low, high = (1127 * math.log(1 + hz / 700) for hz in (cls.lowest_hz, cls.sample_rate_hz / 2))
        width = (high - low) / (num_mels + 1)
        left = low + width * torch.arange(num_mels).unsqueeze(1)
        hz = torch.arange(cls.transform_size // 2) * (cls.sample_rate_hz / cls.transform_size)
        mel = 1127 * (1 + hz / 700).log()
        return pad(torch.minimum((mel - left) / width, (left + 2 * width - mel) / width).clamp_min(0), (0, 1))

    def count_frames(self, num_samples: int) -> int:
        """F of so many samples; 0 of fewer than a window."""
        return max(0, 1 + (num_samples - self.window_size) // self.hop)

    def forward(self, x: Tensor) -> Tensor:
        """x: float [B, T] with T ≥ 400, 16 kHz, all real → [B, F, M]."""
        frames = x.float().unfold(-1, self.window_size, self.hop)  # [B, F, W]
        frames = frames - frames.mean(-1, keepdim=True)
        before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
        spectrum = torch.fft.rfft((frames - self.emphasis * before) * self.window, self.transform_size)
        power = spectrum.abs().square() @ self.bands.T
        return power.clamp_min(torch.finfo(torch.float32).eps).log()


class AmplitudeMel(nn.Module):
    """Log-mel bands of amplitudes as vocoders have them (HiFi-GAN, arXiv 2010.05646): Slaney's filters on
    √(power + 1e-9), the natural logarithm of at least 1e-5. The sound is reflected by (window - hop) / 2 at both ends,
    so that F whole hops are F frames."""

    window: Tensor
    bands: Tensor

    def __init__(self, sample_rate_hz: int, window_size: int, hop: int, num_mels: int, low_hz: float, high_hz: float):
        super().__init__()
        from torchaudio.functional import melscale_fbanks

        self.window_size, self.hop, self.margin = window_size, hop, (window_size - hop) // 2
        with torch.device("cpu"):  # constants, also where the rest is built without storage
            bands = melscale_fbanks(
                window_size // 2 + 1, low_hz, high_hz, num_mels, sample_rate_hz, norm="slaney", mel_scale="slaney"
            )
            self.register_buffer("window", torch.hann_window(window_size), persistent=False)
        self.register_buffer("bands", bands.T.contiguous(), persistent=False)  # [M, W / 2 + 1]

    def forward(self, x: Tensor) -> Tensor:
        """x: float [B, T] with more samples than are reflected → [B, F, M]."""
        x = pad(x.float()[:, None], (self.margin, self.margin), mode="reflect")[:, 0]
        spectrum = torch.stft(x, self.window_size, self.hop, window=self.window, center=False, return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1)
        return (self.bands @ (power + 1e-9).sqrt()).clamp_min(1e-5).log().transpose(1, 2)

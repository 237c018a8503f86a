"""Measures of a rebuilt sound beside its original that take no network, both at 16 kHz.

- `stoi` (Taal et al. 2010): the figures of the package pystoi, from whole arrays of frames and with what is of the
  original alone computed once; None where it cannot be taken, as of silence.
- `pesq` (wide band, of the package pesq): None where it cannot be taken.
- `mel_distance`: mean absolute difference of log-mel bands; `stft_distance`: spectral convergence and log magnitudes at
  three resolutions (arXiv 1910.11480), None of silence.
- `f0_cents`: mean error of the pitch where both are voiced; `voicing_error`: share of frames where one alone is.

Shapes: T samples, F frames.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from unimodal.tokenizers.parts.mel import AmplitudeMel

RATE = 16_000
COMPARED = ("stoi", "pesq", "mel_distance", "stft_distance", "f0_cents", "voicing_error")
#: RMS below which a sound is silence, about -80 dB
SILENCE = 1e-4
WINDOWS = (512, 1024, 2048)
SHORTEST_STOI = RATE // 2  # samples: 30 frames of 25.6 ms and their silence
SHORTEST_PESQ = RATE // 4
#: of STOI: its rate, samples of a frame and between two, of the transform, bands and the lowest one's centre
STOI_RATE, FRAME, STEP, TRANSFORM, BANDS, LOWEST_HZ = 10_000, 256, 128, 512, 15, 150
SEGMENT = 30  # frames that are correlated
LOUDEST_DB, CLIPPED_DB = 40, -15
EPSILON = np.finfo("float").eps


class ComparedOriginal:
    """An original, float [T] at 16 kHz, with what its comparisons have in common. mel: the bands that are compared."""

    def __init__(self, sound: Tensor, mel: AmplitudeMel) -> None:
        self.sound, self.mel = sound.float(), mel
        self.silent = is_silent(self.sound)

    def compare(self, made: Tensor) -> dict[str, float | None]:
        """The figures of a rebuilt sound, float [T]; the longer of both is cut to the other."""
        if len(made) < len(self.sound):
            return ComparedOriginal(self.sound[: len(made)], self.mel).compare(made)
        made = made[: len(self.sound)].float()
        padded = _fill(made)
        figures: dict[str, float | None] = {
            "stoi": None if self.intelligibility is None else self.intelligibility.measure(made.numpy()),
            "pesq": None if self.silent else _measure_pesq(self.sound.numpy(), made.numpy()),
            "mel_distance": float((self.bands - self.mel(padded[None])).abs().mean()),
            "stft_distance": None if self.silent else self._measure_spectra(padded),
        }
        return {**figures, **self._measure_pitch(made)}

    @cached_property
    def intelligibility(self) -> Intelligibility | None:
        if self.silent or len(self.sound) < SHORTEST_STOI:
            return None
        return Intelligibility.of(self.sound.numpy())

    @cached_property
    def bands(self) -> Tensor:
        return self.mel(_fill(self.sound)[None])

    @cached_property
    def spectra(self) -> list[Tensor]:
        return compute_spectra(_fill(self.sound))

    @cached_property
    def pitch(self) -> Tensor:
        return track_pitch(self.sound)

    def _measure_spectra(self, made: Tensor) -> float:
        parts = []
        for x, y in zip(self.spectra, compute_spectra(made), strict=True):
            parts.append(float((x - y).norm() / x.norm().clamp_min(1e-5)))
            parts.append(float((x.clamp_min(1e-5).log() - y.clamp_min(1e-5).log()).abs().mean()))
        return sum(parts) / len(WINDOWS)

    def _measure_pitch(self, made: Tensor) -> dict[str, float | None]:
        x, y = self.pitch, track_pitch(made)
        if not len(x):
            return {"f0_cents": None, "voicing_error": None}
        both = (x > 0) & (y > 0)
        cents = (1200 * (y[both] / x[both]).log2()).abs().mean() if both.any() else None
        return {
            "f0_cents": None if cents is None else float(cents),
            "voicing_error": float(((x > 0) != (y > 0)).float().mean()),
        }


class Intelligibility:
    """STOI of sounds beside one original: its frames that are not silent, and the segments of its bands."""

    def __init__(self, loud: np.ndarray, bands: np.ndarray) -> None:
        """loud: which frames of the original are kept, bool [F]. bands: of these, float64 [BANDS, frames]."""
        self.loud = loud
        segments = sliding_window_view(bands, SEGMENT, axis=1)  # [BANDS, segments, SEGMENT]
        self.norms = np.linalg.norm(segments, axis=2, keepdims=True)
        self.most = segments * (1 + 10 ** (-CLIPPED_DB / 20))
        self.directions = _normalise(segments)

    @classmethod
    def of(cls, original: np.ndarray) -> Intelligibility | None:
        """original: float32 [T] at 16 kHz; None where fewer than 30 frames of it are not silent."""
        frames = _cut_frames(_resample(original))
        energies = 20 * np.log10(np.linalg.norm(frames, axis=1) + EPSILON)
        loud = energies.max() - LOUDEST_DB - energies < 0
        bands = _compute_bands(frames[loud])
        return None if bands.shape[1] < SEGMENT else cls(loud, bands)

    def measure(self, made: np.ndarray) -> float:
        """made: float32 [T], as long as the original."""
        segments = sliding_window_view(_compute_bands(_cut_frames(_resample(made))[self.loud]), SEGMENT, axis=1)
        scaled = segments * (self.norms / (np.linalg.norm(segments, axis=2, keepdims=True) + EPSILON))
        directions = _normalise(np.minimum(scaled, self.most))
        return float(np.einsum("bsf,bsf->", directions, self.directions) / (directions.shape[0] * directions.shape[1]))


def _resample(sound: np.ndarray) -> np.ndarray:
    from pystoi.utils import resample_oct

    found: np.ndarray = resample_oct(sound, STOI_RATE, RATE)
    return found


def _cut_frames(sound: np.ndarray) -> np.ndarray:
    """[T] → windowed frames float64 [F, FRAME]; one that ends with the sound is left out, as pystoi does."""
    frames: np.ndarray = sliding_window_view(sound, FRAME)[: len(sound) - FRAME : STEP] * np.hanning(FRAME + 2)[1:-1]
    return frames


def _compute_bands(frames: np.ndarray) -> np.ndarray:
    """Frames that are kept [F, FRAME] → amplitudes of their thirds of octaves once they are joined, [BANDS, F - 1]."""
    from pystoi.utils import thirdoct

    joined = np.zeros((len(frames) + 1) * STEP)
    joined[:-STEP] += frames[:, :STEP].ravel()
    joined[STEP:] += frames[:, STEP:].ravel()
    if len(joined) <= FRAME:
        return np.zeros((BANDS, 0))
    matrix, _ = thirdoct(STOI_RATE, TRANSFORM, BANDS, LOWEST_HZ)
    found: np.ndarray = np.sqrt(matrix @ np.square(np.abs(np.fft.rfft(_cut_frames(joined), TRANSFORM))).T)
    return found


def _normalise(segments: np.ndarray) -> np.ndarray:
    """Segments without their mean, of unit length."""
    centred = segments - segments.mean(axis=2, keepdims=True)
    found: np.ndarray = centred / (np.linalg.norm(centred, axis=2, keepdims=True) + EPSILON)
    return found


def is_silent(sound: Tensor) -> bool:
    return not len(sound) or float(sound.square().mean().sqrt()) < SILENCE


def _fill(sound: Tensor) -> Tensor:
    """A sound of at least the longest window, filled up with silence."""
    return torch.nn.functional.pad(sound, (0, max(0, max(WINDOWS) - len(sound))))


def compute_spectra(sound: Tensor) -> list[Tensor]:
    """float [T] → magnitudes at each of `WINDOWS`."""
    found = []
    for window in WINDOWS:
        shape = torch.hann_window(window)
        found.append(torch.stft(sound, window, window // 4, window=shape, return_complex=True).abs())
    return found


def _measure_pesq(original: np.ndarray, made: np.ndarray) -> float | None:
    from pesq import PesqError, pesq

    value = pesq(RATE, original, made, "wb", on_error=PesqError.RETURN_VALUES) if len(original) >= SHORTEST_PESQ else -1
    return float(value) if value > 0 else None


def track_pitch(x: Tensor, low_hz: float = 60.0, high_hz: float = 400.0) -> Tensor:
    """float [T] at 16 kHz → Hz for every 10 ms, float [F], 0 where a frame of 50 ms is unvoiced: the first high peak of
    the normalized autocorrelation (Boersma 1993, without its path)."""
    size, hop = RATE // 20, RATE // 100
    if len(x) < size:
        return torch.zeros(0)
    frames = x.unfold(0, size, hop)
    frames = (frames - frames.mean(1, keepdim=True)) * torch.hann_window(size)
    loud = frames.square().mean(1) > SILENCE**2
    spectrum = torch.fft.rfft(frames, 2 * size).abs().square()
    correlation = torch.fft.irfft(spectrum)[:, :size]
    own = torch.fft.irfft(torch.fft.rfft(torch.hann_window(size), 2 * size).abs().square())[:size]
    correlation = correlation / correlation[:, :1].clamp_min(1e-12) / (own / own[0]).clamp_min(1e-3)
    first, last = int(RATE / high_hz), int(RATE / low_hz)
    inside = correlation[:, first : last + 1]
    best = inside.amax(1, keepdim=True)
    lag = (inside >= 0.9 * best).int().argmax(1)  # an octave lower has a peak as high
    near = lag[:, None] + torch.arange(12)
    peaks = inside.gather(1, near.clamp_max(last - first)).masked_fill(near > last - first, -torch.inf)
    lag = lag + peaks.argmax(1) + first
    return torch.where((best[:, 0] > 0.5) & loud, RATE / lag.float(), torch.zeros(()))

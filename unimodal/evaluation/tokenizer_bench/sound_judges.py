"""Sounds beside their originals, both at 16 kHz: STOI, PESQ, distances of spectra, pitch, naturalness, and what
recognisers hear.

- `stoi` (pystoi), `pesq` (wide band, of the package pesq): None where they cannot be taken, as of silence.
- `mel_distance`: mean absolute difference of log-mel bands; `stft_distance`: spectral convergence and log magnitudes at
  three resolutions (arXiv 1910.11480), None of silence.
- `f0_cents`: mean error of the pitch where both are voiced; `voicing_error`: share of frames where one alone is.
- `dnsmos`: DNSMOS P.835 of the rebuilt sound, which knows no original.
- `utmos`: UTMOS of the rebuilt sound, where its weights are named.
- `speaker_cosine`: of the speakers' vectors, by `speaker_judge.py`; None of silence and where Resemblyzer is missing.
- Recognisers: Moonshine tiny (arXiv 2410.15608) and pocketsphinx, which are no part of any tokenizer here.

Shapes: T samples, F frames.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unimodal.evaluation.judges import DnsmosJudge
from unimodal.evaluation.tokenizer_bench.moonshine import Moonshine
from unimodal.evaluation.tokenizer_bench.speaker_judge import SpeakerJudge, find_weights
from unimodal.evaluation.tokenizer_bench.utmos import Utmos
from unimodal.tokenizers.parts.mel import AmplitudeMel

RATE = 16_000
COMPARED = ("stoi", "pesq", "mel_distance", "stft_distance", "f0_cents", "voicing_error")
MEASURES = (*COMPARED, "dnsmos", "speaker_cosine", "utmos")
RECOGNISERS = ("moonshine", "pocketsphinx")
#: what makes pocketsphinx several times faster, by its manual: one pass, fewer paths, every second frame's densities
FAST = {"fwdflat": False, "bestpath": False, "maxhmmpf": 3000, "maxwpf": 5, "ds": 2, "topn": 2}
INSTALL = "pip install 'unimodal[bench]'"
#: RMS below which a sound is silence, about -80 dB
SILENCE = 1e-4
WINDOWS = (512, 1024, 2048)


@dataclass(frozen=True)
class Original:
    """What is found once of an original. heard: by recogniser. voice: of its speaker, None where that is not judged."""

    heard: dict[str, str]
    dnsmos: float
    utmos: float | None
    voice: np.ndarray | None


class SoundJudge:
    """recognisers: who reads speech, by name. utmos: the file of its weights. Raises ValueError if a package is not
    installed."""

    def __init__(self, recognisers: Sequence[str] = (), utmos: Path | None = None) -> None:
        missing = [name for name in ("pystoi", "pesq") if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(f"the bench judges sounds by {' and '.join(missing)}: {INSTALL}")
        self.mel = AmplitudeMel(RATE, 1024, 256, 80, 0.0, 8000.0)
        self.dnsmos = DnsmosJudge(1)  # sounds are judged side by side, so one thread for each
        self.speaker = None if find_weights() is None else SpeakerJudge()
        self.utmos = None if utmos is None else Utmos.load(utmos)
        self.recognisers = {name: load_recogniser(name) for name in recognisers}

    @torch.inference_mode()
    def describe(self, original: Tensor) -> Original:
        """original: float [T] at 16 kHz."""
        voice = None if self.speaker is None else self.speaker.embed(original).numpy() * (not is_silent(original))
        heard = {name: hear(original) for name, hear in self.recognisers.items()}
        utmos = None if self.utmos is None else self.utmos.score(original)
        return Original(heard, self.dnsmos.score(original), utmos, voice)

    def judge_speech(self, made: Tensor, original: Original) -> dict[str, float | str | None]:
        """What networks say of a rebuilt sound: `dnsmos`, `speaker_cosine`, and "heard:NAME" of every recogniser."""
        found: dict[str, float | str | None] = {"dnsmos": self.dnsmos.score(made), "speaker_cosine": None}
        if original.voice is not None and self.speaker is not None and original.voice.any():
            found["speaker_cosine"] = float(torch.from_numpy(original.voice) @ self.speaker.embed(made))
        if self.utmos is not None:
            found["utmos"] = self.utmos.score(made)
        return found | {f"heard:{name}": hear(made) for name, hear in self.recognisers.items()}

    @torch.inference_mode()
    def compare(self, original: Tensor, made: Tensor) -> dict[str, float | None]:
        """The measures that take no network. original, made: float [T] at 16 kHz; what is longer is cut off."""
        length = min(len(original), len(made))
        a, b = original[:length].float(), made[:length].float()
        padded = [torch.nn.functional.pad(x, (0, max(0, max(WINDOWS) - length))) for x in (a, b)]
        silent = is_silent(a)
        figures: dict[str, float | None] = {
            "stoi": None if silent else _measure_stoi(a.numpy(), b.numpy()),
            "pesq": None if silent else _measure_pesq(a.numpy(), b.numpy()),
            "mel_distance": float((self.mel(padded[0][None]) - self.mel(padded[1][None])).abs().mean()),
            "stft_distance": None if silent else _measure_stft(*padded),
        }
        return {**figures, **_measure_pitch(a, b)}


@dataclass(frozen=True)
class Comparison:
    """A rebuilt sound beside its original, float32 [T] each. heard: whether networks judge it too."""

    original: np.ndarray
    made: np.ndarray
    heard: bool


def describe_original(original: np.ndarray, judge: SoundJudge) -> Original:
    """A task of a process that judges."""
    return judge.describe(torch.from_numpy(original))


def judge_sound(original: Original, asked: Mapping[str, Comparison], judge: SoundJudge) -> dict[str, object]:
    """Another: the figures of one sound's comparisons, under "KEY:measure"."""
    found: dict[str, object] = {}
    for key, each in asked.items():
        real, made = torch.from_numpy(each.original), torch.from_numpy(each.made)
        figures: dict[str, float | str | None] = {**judge.compare(real, made)}
        if each.heard:
            figures |= judge.judge_speech(made[: len(real)], original)
        found |= {f"{key}:{name}": value for name, value in figures.items()}
    return found


def is_silent(sound: Tensor) -> bool:
    return not len(sound) or float(sound.square().mean().sqrt()) < SILENCE


def _measure_stoi(original: np.ndarray, made: np.ndarray) -> float | None:
    from pystoi import stoi

    if len(original) < RATE // 2:  # 30 frames of 25.6 ms and their silence
        return None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        value = float(stoi(original, made, RATE))
    return None if any("STOI" in str(each.message) or "frames" in str(each.message) for each in said) else value


def _measure_pesq(original: np.ndarray, made: np.ndarray) -> float | None:
    from pesq import PesqError, pesq

    value = pesq(RATE, original, made, "wb", on_error=PesqError.RETURN_VALUES) if len(original) >= RATE // 4 else -1
    return float(value) if value > 0 else None


def _measure_stft(a: Tensor, b: Tensor) -> float:
    parts = []
    for window in WINDOWS:
        shape = torch.hann_window(window)
        x, y = (torch.stft(each, window, window // 4, window=shape, return_complex=True).abs() for each in (a, b))
        parts.append(float((x - y).norm() / x.norm().clamp_min(1e-5)))
        parts.append(float((x.clamp_min(1e-5).log() - y.clamp_min(1e-5).log()).abs().mean()))
    return sum(parts) / len(WINDOWS)


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


def _measure_pitch(a: Tensor, b: Tensor) -> dict[str, float | None]:
    x, y = track_pitch(a), track_pitch(b)
    if not len(x):
        return {"f0_cents": None, "voicing_error": None}
    both = (x > 0) & (y > 0)
    cents = (1200 * (y[both] / x[both]).log2()).abs().mean() if both.any() else None
    return {
        "f0_cents": None if cents is None else float(cents),
        "voicing_error": float(((x > 0) != (y > 0)).float().mean()),
    }


def load_recogniser(name: str) -> Callable[[Tensor], str]:
    """A recogniser of English: float [T] at 16 kHz → text. ValueError if it is not installed."""
    if name == "moonshine":
        return Moonshine().transcribe
    if name == "pocketsphinx":
        return _load_pocketsphinx()
    if name == "whisper":
        raise ValueError("Whisper is a part of tokenizers and judges none; choose from " + ", ".join(RECOGNISERS))
    raise ValueError(f"there is no recogniser {name!r}; choose from {', '.join(RECOGNISERS)}")


def _load_pocketsphinx() -> Callable[[Tensor], str]:
    try:
        from pocketsphinx import Decoder
    except ImportError:
        raise ValueError(f"the bench reads speech by pocketsphinx: {INSTALL}") from None
    decoder = Decoder(samprate=RATE, loglevel="FATAL", **FAST)

    def transcribe(sound: Tensor) -> str:
        decoder.start_utt()
        decoder.process_raw((sound.clamp(-1, 1) * 32767).short().numpy().tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return "" if found is None else str(found.hypstr)

    return transcribe

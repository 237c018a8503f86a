"""Sound: WAV, FLAC, Ogg and MP3 files to mono float tensors at one sample rate, and back to files.

Files go through soundfile, resampling through torchaudio (a windowed sinc). Shapes: T samples.
"""

from __future__ import annotations

import io
import math
import os
from pathlib import Path

import numpy as np
import soundfile  # type: ignore[import-untyped]
import torch
from torch import Tensor

from unimodal.files import atomic_write_bytes, quote_path
from unimodal.media.files import MediaSource, Opened, open_source, quiet_stderr
from unimodal.media.headers import Content, read_content
from unimodal.media.limits import DEFAULT_LIMITS, MediaLimits, damaged, unusable
from unimodal.media.registry import FileTarget

SAMPLE_RATE_HZ = 16_000  # where nobody names one

_FORMATS = {  # suffix → soundfile's format and subtype
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
_MAX_PEAK = 16.0  # float files may overshoot 1 a little; one far above holds integers
_BLOCK_SAMPLES = 1 << 18
_MAX_RATIO_TERM = 1000


def load_audio(
    source: MediaSource, sample_rate_hz: int = SAMPLE_RATE_HZ, limits: MediaLimits = DEFAULT_LIMITS
) -> Tensor:
    """A sound as float32 [T] in [-1, 1]: the mean of its channels, resampled to `sample_rate_hz`.

    Raises ValueError for a file that is missing, empty, not a sound, truncated, damaged or over a limit, and for
    samples that are not numbers.
    """
    _check_rate(sample_rate_hz)
    with open_source(source, limits.max_bytes) as opened:
        content = read_content(opened)
        if content.kind != "audio":
            raise unusable(opened.name, content, "audio")
        if content.truncated:
            raise damaged(opened.name, content)
        try:
            if content.name == "MP3 sound":
                with quiet_stderr():
                    samples, file_rate_hz = _decode(opened, content, limits)
            else:
                samples, file_rate_hz = _decode(opened, content, limits)
        except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
            # libsndfile's message for an MP3 file that it cannot open is about something else
            detail = None if content.name == "MP3 sound" else getattr(error, "error_string", str(error))
            raise damaged(opened.name, content, detail) from None
    return resample(torch.from_numpy(samples), file_rate_hz, sample_rate_hz).clamp_(-1, 1)


def load_audio_for(source: MediaSource, target: FileTarget, limits: MediaLimits) -> Tensor:
    """`load_audio` at the rate that a tokenizer takes."""
    return load_audio(source, target.sample_rate_hz or SAMPLE_RATE_HZ, limits)


def save_audio_at(samples: Tensor, path: str | os.PathLike[str], rate: float | None) -> None:
    """`save_audio` at the rate of a tokenizer."""
    save_audio(samples, path, int(rate or SAMPLE_RATE_HZ))


def _decode(opened: Opened, content: Content, limits: MediaLimits) -> tuple[np.ndarray, int]:
    """(mono float32 [T], sample rate), block by block so that only the mono sound is held."""
    name = opened.name
    with soundfile.SoundFile(opened.rewound()) as file:
        rate_hz, num_channels, declared = file.samplerate, file.channels, file.frames
        if not 1000 <= rate_hz <= limits.max_sample_rate_hz:
            raise ValueError(
                f"{name} has {rate_hz:,} samples a second, outside 1,000 to max_sample_rate_hz="
                f"{limits.max_sample_rate_hz:,}; resample it or raise that limit"
            )
        if num_channels > limits.max_channels:
            raise ValueError(
                f"{name} has {num_channels} channels, over the limit max_channels={limits.max_channels}; "
                "mix it down or raise that limit"
            )
        known = 0 <= declared < 2**62  # a stream written to a pipe does not tell
        if known:
            limits.check_seconds(name, declared / rate_hz)
        blocks: list[np.ndarray] = []
        num_samples = 0
        block_samples = max(1, _BLOCK_SAMPLES // num_channels)
        while len(block := file.read(block_samples, dtype="float32", always_2d=True)):  # [block, channels]
            num_samples += len(block)
            limits.check_seconds(name, num_samples / rate_hz)
            _check_samples(name, block)
            blocks.append(block.mean(axis=1, dtype=np.float32))
    if known and num_samples < declared:
        raise ValueError(
            f"{name} is {content.described} cut short: it gives {num_samples:,} of {declared:,} samples; "
            "copy or download it again"
        )
    if num_samples == 0:
        raise ValueError(f"{name} holds no samples; record or export it again")
    return np.concatenate(blocks), rate_hz


def _check_samples(name: str, block: np.ndarray) -> None:
    peak = np.abs(block).max()
    if not np.isfinite(peak):
        raise ValueError(f"{name} holds samples that are not numbers (NaN or infinity); export it again as 16-bit WAV")
    if peak > _MAX_PEAK:
        raise ValueError(f"{name} has samples up to {peak:,.0f}, not within -1 to 1; export it again as 16-bit WAV")


def _check_rate(sample_rate_hz: int) -> None:
    if not isinstance(sample_rate_hz, int) or not 1000 <= sample_rate_hz <= 768_000:
        raise ValueError(f"sample_rate_hz={sample_rate_hz} is not a usable rate; give one from 1,000 to 768,000")


def resample(samples: Tensor, from_hz: int, to_hz: int) -> Tensor:
    """float32 [T] → [⌈T · to / from⌉], by torchaudio, whose filter bank has a row for each term of the reduced ratio.

    Rates that share no large divisor (44,101 → 16,000 would need gigabytes of filters) go through `_sinc_resample`.
    """
    if from_hz == to_hz:
        return samples
    divisor = math.gcd(from_hz, to_hz)
    if max(from_hz, to_hz) // divisor > _MAX_RATIO_TERM:
        return _sinc_resample(samples, from_hz, to_hz)
    import torchaudio.functional  # type: ignore[import-untyped]

    return torchaudio.functional.resample(samples[None], from_hz, to_hz)[0]


def _sinc_resample(samples: Tensor, from_hz: int, to_hz: int) -> Tensor:
    """torchaudio's default filter (Hann-windowed sinc, 6 zero crossings, roll-off 0.99) at each output's own time."""
    num_samples, length = samples.shape[0], -(-samples.shape[0] * to_hz // from_hz)
    cutoff_hz = 0.99 * min(from_hz, to_hz)
    half_width = math.ceil(6 * from_hz / cutoff_hz) + 1
    taps = torch.arange(-half_width, half_width + 1)  # [W]
    resampled = torch.empty(length)
    for start in range(0, length, 1 << 16):
        outputs = torch.arange(start, min(start + (1 << 16), length))  # [N]
        centres = outputs * from_hz // to_hz  # [N]
        indices = centres[:, None] + taps  # [N, W]
        # (index / from − output / to) · cutoff, with the difference of products in integers, so exact at any length
        phases = (indices * to_hz - outputs[:, None] * from_hz).double() * (cutoff_hz / (from_hz * to_hz))
        phases = phases.clamp(-6, 6)
        weights = torch.sinc(phases) * torch.cos(phases * (math.pi / 12)).square() * (cutoff_hz / from_hz)  # [N, W]
        inside = (indices >= 0) & (indices < num_samples)
        values = samples[indices.clamp(0, num_samples - 1)] * inside  # [N, W]
        resampled[start : start + len(outputs)] = (values * weights.float()).sum(dim=1)
    return resampled


def save_audio(samples: Tensor, path: str | os.PathLike[str], sample_rate_hz: int) -> None:
    """Save mono [T] in [-1, 1] as WAV or FLAC (16 bits), Ogg Vorbis or MP3, by the suffix.

    Raises ValueError for another suffix or shape, no samples, or values that are not numbers.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS:
        wrong = repr(suffix) if suffix else "a name without suffix"
        raise ValueError(f"{quote_path(path)}: cannot save a sound as {wrong}; use .wav, .flac, .ogg or .mp3")
    _check_rate(sample_rate_hz)
    samples = samples.detach().cpu()
    if samples.ndim != 1 or samples.shape[0] == 0 or not samples.is_floating_point():
        raise ValueError(f"expected a float sound [T], got {samples.dtype} {list(samples.shape)}")
    if not torch.isfinite(samples).all():
        raise ValueError("the sound holds values that are not numbers (NaN or infinity); check what made it")
    format_name, subtype = _FORMATS[suffix]
    values = (samples.double().clamp(-1, 1) * 32768).round().clamp(-32768, 32767).short().numpy()  # 16 bits, [T]
    memory = io.BytesIO()
    try:
        soundfile.write(memory, values, sample_rate_hz, format=format_name, subtype=subtype)
    except soundfile.LibsndfileError as error:
        raise ValueError(
            f"{quote_path(path)}: {format_name} cannot hold {sample_rate_hz:,} samples a second "
            f"({error.error_string}); use .wav"
        ) from None
    atomic_write_bytes(path, memory.getvalue(), make_folder=False)

"""Sound files to mono float tensors at one sample rate, and back to files.

WAV, FLAC, Ogg, AIFF, AU and CAF of one or two channels go through soundfile; MP3, AAC, the sound of film containers,
more channels, and streams whose header does not tell their length go through libav. Resampling is torchaudio's
windowed sinc.

Shapes: C channels, T samples.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import soundfile  # type: ignore[import-untyped]
import torch
from torch import Tensor

from unimodal.files import quote_path, write_bytes_atomically
from unimodal.media.containers import FILM_DEMUXERS, read_sound
from unimodal.media.files import MediaSource, Opened, open_source
from unimodal.media.headers import Content, is_mp3_frame, read_content
from unimodal.media.limits import DEFAULT_LIMITS, MediaLimits, make_damage_error, make_mismatch_error
from unimodal.media.registry import FileTarget

SAMPLE_RATE_HZ = 16_000  # where nobody names one

_FORMATS = {  # suffix → soundfile's format and subtype
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
_SOUNDFILE = {"WAV sound", "FLAC sound", "Ogg sound", "AIFF sound", "AU sound", "CAF sound"}
_SOUGHT = _SOUNDFILE - {"Ogg sound"}  # files in which a jump to a sample is exact
_SIDE = 0.5**0.5
#: shares of channels in the mean of the two-channel down-mix of ITU-R BS.775: the centre is in both, the rear in one
_SHARES = {"FL": 0.5, "FR": 0.5, "FC": _SIDE, "LFE": 0.0, "BC": 0.5}
_SHARES |= dict.fromkeys(("BL", "BR", "SL", "SR", "FLC", "FRC"), _SIDE / 2)
#: the channels of a file that does not name them, by their number: the order of WAVE_FORMAT_EXTENSIBLE
_ORDERS = {
    3: ("FL", "FR", "FC"),
    4: ("FL", "FR", "BL", "BR"),
    5: ("FL", "FR", "FC", "BL", "BR"),
    6: ("FL", "FR", "FC", "LFE", "BL", "BR"),
    7: ("FL", "FR", "FC", "LFE", "BC", "SL", "SR"),
    8: ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"),
}
_MAX_PEAK = 16.0  # float files may overshoot 1 a little; one far above holds integers
_MP3_ADDED = 2 * 1152  # before and behind the sound, by an encoder that does not say how much
_BLOCK_SAMPLES = 1 << 18
_MAX_RATIO_TERM = 1000


@dataclass
class _Part:
    """Collects the samples of a part of a sound, with up to two seconds around it, which resampling looks at.

    first_s: the whole second at which the collected samples begin.
    """

    name: str
    limits: MediaLimits
    start_s: float
    seconds: float | None
    blocks: list[np.ndarray] = field(default_factory=list)  # mono float32 [T] each
    num_read: int = 0  # samples of a channel, those before the part included
    rate_hz: int = 0

    @property
    def first_s(self) -> int:
        return max(0, math.floor(self.start_s) - 1)

    @property
    def is_whole(self) -> bool:
        """Whether the part is the whole sound."""
        return self.start_s == 0 and self.seconds is None

    @property
    def is_read(self) -> bool:
        """Whether all of a part with an end has been read."""
        return self.seconds is not None and self.num_read >= (self.start_s + self.seconds + 1) * self.rate_hz

    def check(self, num_channels: int, num_samples: int) -> None:
        """Raises ValueError if so many samples a channel, from the sound's beginning on, hold too much of the part."""
        length_s = num_samples / self.rate_hz
        if self.seconds is not None:
            length_s = min(length_s, self.start_s + self.seconds)
        taken = num_samples if self.is_whole else round(max(0.0, length_s - self.start_s) * self.rate_hz)
        self.limits.check_sound(self.name, self.rate_hz, num_channels, taken)

    def add(self, block: np.ndarray, num_channels: int) -> None:
        """Takes the next mono samples [T] of the sound. Raises ValueError for those over a limit."""
        before, self.num_read = self.num_read, self.num_read + len(block)
        self.check(num_channels, self.num_read)
        kept = block[max(0, self.first_s * self.rate_hz - before) :]
        if len(kept):
            self.blocks.append(kept)
        else:
            self.limits.check_skipped(self.name, self.num_read / self.rate_hz)

    def join(self) -> np.ndarray:
        """The collected samples [T], from `first_s` on. Raises ValueError for a sound without any, or with fewer."""
        if self.num_read == 0:
            raise ValueError(f"{self.name} holds no samples; record or export it again")
        if self.start_s > 0 and round(self.start_s * self.rate_hz) >= self.num_read:
            raise ValueError(
                f"the sound lasts {self.num_read / self.rate_hz:,.1f} s, so nothing starts at {self.start_s:g} s; "
                "start earlier"
            )
        return np.concatenate(self.blocks)


def load_audio(
    source: MediaSource,
    sample_rate_hz: int = SAMPLE_RATE_HZ,
    limits: MediaLimits = DEFAULT_LIMITS,
    start_s: float = 0.0,
    seconds: float | None = None,
) -> Tensor:
    """A sound as float32 [T] in [-1, 1], mixed down to one channel and resampled to `sample_rate_hz`.

    start_s, seconds: the part to take; what lies outside it is not held, and no limit of length is about it.

    A film container's first sound is read too. Two channels give their mean, more the mean of their standard
    two-channel down-mix (ITU-R BS.775), turned down where that would go beyond 1.

    Raises ValueError for a file that is missing, empty, without sound, truncated, damaged or over a limit, for samples
    that are not numbers, and for a part that begins behind the end.
    """
    _check_rate(sample_rate_hz)
    with open_source(source, limits.max_bytes) as opened:
        content = read_content(opened)
        if content.kind != "audio" and content.name not in FILM_DEMUXERS:
            raise make_mismatch_error(opened.name, content, "audio")
        if content.truncated:
            raise make_damage_error(opened.name, content)
        part = _decode(opened, content, _Part(opened.name, limits, start_s, seconds))
    samples = resample(torch.from_numpy(part.join()), part.rate_hz, sample_rate_hz).clamp_(-1, 1)
    start = round(start_s * sample_rate_hz) - part.first_s * sample_rate_hz
    return samples[start : None if seconds is None else start + round(seconds * sample_rate_hz)]


def load_audio_for(source: MediaSource, target: FileTarget, limits: MediaLimits) -> Tensor:
    """`load_audio` at the rate of a tokenizer, of the part that is asked for."""
    rate_hz = target.sample_rate_hz or SAMPLE_RATE_HZ
    return load_audio(source, rate_hz, limits, target.start_s, target.seconds)


def save_audio_at(samples: Tensor, path: str | os.PathLike[str], rate: float | None) -> None:
    """`save_audio` at the rate of a tokenizer."""
    save_audio(samples, path, int(rate or SAMPLE_RATE_HZ))


def _decode(opened: Opened, content: Content, part: _Part) -> _Part:
    """Reads the part, block by block so that only its mono samples are held; returns it, or another of its kind."""
    if content.name in _SOUNDFILE and not content.streamed:
        try:
            done = _decode_by_soundfile(opened, content, part)
        except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
            if content.name != "Ogg sound":  # which may hold FLAC or Speex: libav's to read
                raise make_damage_error(opened.name, content, getattr(error, "error_string", str(error))) from None
            done = False
        if done:
            return part
    part = _Part(part.name, part.limits, part.start_s, part.seconds)  # soundfile may have begun with it
    try:
        _decode_by_libav(opened, content, part)
    except (av.error.FFmpegError, OSError, EOFError) as error:
        raise make_damage_error(opened.name, content, error) from None
    return part


def _decode_by_soundfile(opened: Opened, content: Content, part: _Part) -> bool:
    """Reads one or two channels; False for more, since libsndfile does not say which is the centre."""
    with soundfile.SoundFile(opened.rewind()) as file:
        part.rate_hz, declared = file.samplerate, file.frames
        known = 0 <= declared < 2**62
        part.check(file.channels, declared if known else 0)
        if file.channels > 2:
            return False
        if known and content.name in _SOUGHT:
            part.num_read = min(file.seek(min(part.first_s * part.rate_hz, declared)), declared)
        while not part.is_read and len(block := file.read(_BLOCK_SAMPLES, dtype="float32", always_2d=True)):  # [T, C]
            part.add(block.mean(axis=1, dtype=np.float32), file.channels)
            _check_samples(opened.name, block)
    if known and part.num_read < declared and not part.is_read:
        raise _make_short_error(opened.name, content, part.num_read, declared)
    return True


def _decode_by_libav(opened: Opened, content: Content, part: _Part) -> None:
    name, num_channels = opened.name, 0
    declared = count_mp3_samples(opened) if content.name == "MP3 sound" else None
    for block, rate_hz, channels in read_sound(opened, content, part.limits):  # [C, T]
        if part.rate_hz not in (0, rate_hz):
            raise ValueError(f"{name} changes from {part.rate_hz:,} to {rate_hz:,} samples a second; export it again")
        part.rate_hz, num_channels = rate_hz, max(num_channels, len(block))
        if part.is_whole:
            part.check(len(block), declared or 0)
        _check_samples(name, block)
        part.add(mix_down(block, channels), len(block))
        if part.is_read:
            break
    if declared is not None and part.num_read < declared - 1152 and not part.is_read:
        raise _make_short_error(name, content, part.num_read, declared)
    peak = max((np.abs(block).max() for block in part.blocks if len(block)), default=0.0)
    if num_channels > 2 and peak > 1:
        part.blocks = [block / peak for block in part.blocks]


def _make_short_error(name: str, content: Content, num_samples: int, declared: int) -> ValueError:
    return ValueError(
        f"{name} is {content.described} cut short: it gives {num_samples:,} of {declared:,} samples; "
        "copy or download it again"
    )


def mix_down(block: np.ndarray, channels: Sequence[str]) -> np.ndarray:
    """Samples [C, T] of channels named as libav does ("FL", "FC", …) → one channel [T]; see `load_audio`.

    If a name is unknown, the channels are taken in the usual order for their number; more than eight are averaged.
    """
    if any(name not in _SHARES for name in channels):
        channels = _ORDERS.get(len(block), ())
    if len(block) < 3 or not channels:
        return block.mean(axis=0, dtype=np.float32)
    shares = np.array([_SHARES[name] for name in channels], dtype=np.float32)
    return shares @ block


def count_mp3_samples(opened: Opened) -> int | None:
    """Samples of a channel by the Xing, Info or VBRI header of an MP3 file; None without such a header.

    The padding that LAME declares before and behind the sound, which a decoder leaves out, is subtracted.
    """
    start = 0
    while (tag := opened.read(start, 10))[:3] == b"ID3" and len(tag) == 10:  # sizes of 7 bits a byte
        start += 10 + (tag[6] << 21 | tag[7] << 14 | tag[8] << 7 | tag[9])
    frame = opened.read(start, 256)
    if len(frame) < 256 or not is_mp3_frame(frame):
        return None
    first_version = frame[1] >> 3 & 3 == 3
    is_mono = frame[3] >> 6 == 3
    header = frame[4 + ((17 if is_mono else 32) if first_version else (9 if is_mono else 17)) :]
    added = _MP3_ADDED
    if header[:4] in (b"Xing", b"Info") and header[7] & 1:
        num_frames = int.from_bytes(header[8:12], "big")
        if header[7] & 15 == 15 and header[120:124] in (b"LAME", b"Lavc", b"Lavf"):
            before_and_behind = int.from_bytes(header[141:144], "big")  # 12 bits each
            added = (before_and_behind >> 12) + (before_and_behind & 0xFFF)
    elif frame[36:40] == b"VBRI":
        num_frames = int.from_bytes(frame[50:54], "big")
    else:
        return None
    return max(0, num_frames * (1152 if first_version else 576) - added)


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

    Rates that share no large divisor (44,101 → 16,000 would need gigabytes of filters) go through `_resample_by_sinc`.
    """
    if from_hz == to_hz:
        return samples
    divisor = math.gcd(from_hz, to_hz)
    if max(from_hz, to_hz) // divisor > _MAX_RATIO_TERM:
        return _resample_by_sinc(samples, from_hz, to_hz)
    import torchaudio.functional  # type: ignore[import-untyped]

    return torchaudio.functional.resample(samples[None], from_hz, to_hz)[0]


def _resample_by_sinc(samples: Tensor, from_hz: int, to_hz: int) -> Tensor:
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
    write_bytes_atomically(path, memory.getvalue(), make_folder=False)

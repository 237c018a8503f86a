"""What is said of sounds at 16 kHz: by the measures of `sound_measures.py` beside an original, and by networks.

- `dnsmos`: DNSMOS P.835 of the rebuilt sound, which knows no original.
- `utmos`: UTMOS of the rebuilt sound, where its weights are named.
- `speaker_cosine`: of the speakers' vectors, by `speaker_judge.py`; None of silence and where Resemblyzer is missing.
- Recognisers: Moonshine tiny (arXiv 2410.15608) and pocketsphinx, which are no part of any tokenizer here.

Sounds are judged several at a time, in tasks of `workers.py`.

Shapes: T samples, D width of a speaker's vector.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unimodal.evaluation.judges import DnsmosJudge
from unimodal.evaluation.tokenizer_bench.moonshine import Moonshine
from unimodal.evaluation.tokenizer_bench.sound_codecs import code_with_opus
from unimodal.evaluation.tokenizer_bench.sound_measures import COMPARED, RATE, ComparedOriginal, is_silent
from unimodal.evaluation.tokenizer_bench.speaker_judge import SpeakerJudge, find_weights
from unimodal.evaluation.tokenizer_bench.utmos import Utmos
from unimodal.tokenizers.parts.mel import AmplitudeMel

MEASURES = (*COMPARED, "dnsmos", "speaker_cosine", "utmos")
RECOGNISERS = ("moonshine", "pocketsphinx")
#: what makes pocketsphinx several times faster, by its manual: one pass, fewer paths, every second frame's densities
FAST = {"fwdflat": False, "bestpath": False, "maxhmmpf": 3000, "maxwpf": 5, "ds": 2, "topn": 2}
INSTALL = "pip install 'unimodal[bench]'"

Figures = dict[str, float | str | None]


@dataclass(frozen=True)
class Original:
    """What is found once of an original. heard: by recogniser. voice: of its speaker, None where that is not judged."""

    heard: dict[str, str]
    dnsmos: float
    utmos: float | None
    voice: np.ndarray | None


@dataclass(frozen=True)
class Asked:
    """Rebuilt sounds beside their original, float32 [T] each. made: by a key of the caller. heard: the keys of those
    that networks judge too. voice: the original's, where that is judged."""

    original: np.ndarray
    voice: np.ndarray | None
    made: Mapping[str, np.ndarray]
    heard: frozenset[str]


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
    def describe(self, originals: Sequence[Tensor]) -> list[Original]:
        """originals: float [T] each."""
        voices: list[np.ndarray | None] = [None] * len(originals)
        if self.speaker is not None:
            found = self.speaker.embed(originals)
            voices = [voice.numpy() * (not is_silent(sound)) for voice, sound in zip(found, originals, strict=True)]
        return [
            Original(
                {name: hear(sound) for name, hear in self.recognisers.items()},
                self.dnsmos.score(sound),
                None if self.utmos is None else self.utmos.score(sound),
                voice,
            )
            for sound, voice in zip(originals, voices, strict=True)
        ]

    @torch.inference_mode()
    def judge_speech(self, made: Sequence[Tensor], voices: Sequence[np.ndarray | None]) -> list[Figures]:
        """What networks say of each rebuilt sound: `dnsmos`, `speaker_cosine`, and "heard:NAME" of every recogniser.
        voices: those of the originals."""
        vectors = None if self.speaker is None else self.speaker.embed(made)
        judged = []
        for number, (sound, voice) in enumerate(zip(made, voices, strict=True)):
            figures: Figures = {"dnsmos": self.dnsmos.score(sound), "speaker_cosine": None}
            if vectors is not None and voice is not None and voice.any():
                figures["speaker_cosine"] = float(torch.from_numpy(voice) @ vectors[number])
            if self.utmos is not None:
                figures["utmos"] = self.utmos.score(sound)
            judged.append(figures | {f"heard:{name}": hear(sound) for name, hear in self.recognisers.items()})
        return judged

    @torch.inference_mode()
    def judge(self, asked: Sequence[Asked]) -> list[Figures]:
        """The figures of each original's rebuilt sounds, under "KEY:measure"."""
        found: list[Figures] = []
        spoken: list[tuple[int, str, Tensor]] = []
        for number, each in enumerate(asked):
            found.append({})
            original = ComparedOriginal(torch.from_numpy(each.original), self.mel)
            for key, wave in each.made.items():
                made = torch.from_numpy(wave)[: len(each.original)]
                found[number] |= {f"{key}:{name}": value for name, value in original.compare(made).items()}
                if key in each.heard:
                    spoken.append((number, key, made))
        judged = self.judge_speech([made for _, _, made in spoken], [asked[number].voice for number, _, _ in spoken])
        for (number, key, _), figures in zip(spoken, judged, strict=True):
            found[number] |= {f"{key}:{name}": value for name, value in figures.items()}
        return found


def describe_originals(sounds: Sequence[np.ndarray], judge: SoundJudge) -> list[Original]:
    """A task of a process that judges."""
    return judge.describe([torch.from_numpy(sound) for sound in sounds])


def judge_sounds(asked: Sequence[Asked], judge: SoundJudge) -> list[Figures]:
    """Another: the figures of rebuilt sounds."""
    return judge.judge(asked)


def judge_opus(asked: Sequence[tuple[Asked, int]], judge: SoundJudge, heard: bool) -> list[Figures]:
    """Another: Opus codes each original at so many bits a second, and is judged as they are; also its "bytes".
    heard: whether networks judge it too."""
    coded = [code_with_opus(torch.from_numpy(each.original), RATE, rate) for each, rate in asked]
    keys = frozenset(["opus"] if heard else [])
    made = [
        replace(each, made={"opus": opus.samples.numpy()}, heard=keys)
        for (each, _), opus in zip(asked, coded, strict=True)
    ]
    return [
        {"bytes": opus.num_bits / 8} | {name.removeprefix("opus:"): value for name, value in figures.items()}
        for opus, figures in zip(coded, judge.judge(made), strict=True)
    ]


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

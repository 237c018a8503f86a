"""Sounds → names, and names → sounds.

`effect` and `note` in the splits that are held out: `variant` (other takes of what was trained on), `sample`
(recordings of known names that were never heard) and `combination` (notes that an instrument never played in training).
A name is right if the answer has its words and not those of a longer one (`electric guitar` is no `guitar`); `note`
counts the note's name.
`made` reports sounds that are asked for by name: the share whose own kind is among the 5 training sounds most alike.
Its judge is no network: means and spreads of 40 mel bands and how loudness runs; `made_original` is the same of
held-out sounds. Shares are in per cent with Wilson's 95% interval, of recordings: a recording's takes are alike.

Shapes: B sounds, T samples, D features.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unimodal.data.named_sounds import ASK, PREPARE, WISH_EFFECT, WISH_NOTE, NamedSound, read_sounds
from unimodal.evaluation.asking import answer_media, answer_texts
from unimodal.evaluation.judges import find_nearest
from unimodal.evaluation.prepared import sample
from unimodal.evaluation.shares import measure_share
from unimodal.evaluation.suite import ReportProgress, Suite
from unimodal.pipeline import Unimodal
from unimodal.sequence.document import Audio, Document, Text, Turn

DEFAULT_LIMIT, MADE_LIMIT, NUM_NEAREST = 200, 60, 5
BATCH = 32
BANDS, STEPS = 40, 8  # mel bands, and parts of a sound in which its loudness is measured
RATE_HZ, WINDOW, HOP = 16_000, 512, 160
NUM_EXAMPLES = 4


def run(model: Unimodal, data_folder: Path, limit: int | None, seed: int, report: ReportProgress) -> dict[str, object]:
    folder = data_folder / "sounds"
    sounds = read_sounds(folder)
    if not (folder / "audio.int16").is_file():
        raise ValueError(f"{folder / 'audio.int16'}: no such file; make it with `{PREPARE}`")
    samples = np.memmap(folder / "audio.int16", np.int16, "r")
    groups: dict[str, list[NamedSound]] = defaultdict(list)
    for sound in sounds:
        groups[f"{sound.kind} {sound.split}"].append(sound)
    figures: dict[str, object] = {
        "judge": "names of the sounds; for made ones, nearest training sounds by mel statistics"
    }
    for name in sorted(groups):
        if not name.endswith(" train"):
            some = [groups[name][row] for row in sample(np.arange(len(groups[name])), limit or DEFAULT_LIMIT, seed)]
            figures[name] = name_sounds(model, some, {sound.source for sound in sounds}, samples, seed, report)
    gallery = [sound for sound in sounds if sound.split == "train"]
    known = torch.stack([describe_sound(take(sound, samples)) for sound in gallery])
    centre, spread = known.mean(0), known.std(0).clamp_min(1e-3)
    names = np.array([sound.source for sound in gallery])
    held = [sound for sound in sounds if sound.split != "train"]
    held = [held[row] for row in sample(np.arange(len(held)), limit or MADE_LIMIT, seed)]
    made = answer_media(model, [wish_for(sound) for sound in held], "audio", seed, report, "making sounds")
    for name, waves in (("made", made), ("made_original", [take(sound, samples) for sound in held])):
        described = (torch.stack([describe_sound(wave) for wave in waves]) - centre) / spread
        scaled = [torch.nn.functional.normalize(x, dim=-1) for x in (described, (known - centre) / spread)]
        near = names[find_nearest(scaled[0], scaled[1], NUM_NEAREST).numpy()]  # [B, 5]
        right = [sound.source in row for sound, row in zip(held, near, strict=True)]
        figures[name] = measure_share(right, [sound.recording for sound in held])
    return figures


def name_sounds(
    model: Unimodal, sounds: Sequence[NamedSound], names: Collection[str], samples: np.ndarray, seed: int,
    report: ReportProgress,
) -> dict[str, object]:  # fmt: skip
    """The share of sounds that are named right. names: of all sounds that there are."""
    documents = []
    for start in range(0, len(sounds), BATCH):
        report("coding sounds", start, len(sounds))
        waves = [take(sound, samples) for sound in sounds[start : start + BATCH]]
        for codes in model.coder.encode("audio", waves):
            documents.append(Document([Turn("user", [Audio(codes=codes), Text(ASK[0])])]))
    answers = answer_texts(model, documents, seed, report)
    right = [sound.is_named_by(answer, names) for sound, answer in zip(sounds, answers, strict=True)]
    recordings = [sound.recording for sound in sounds]
    found: dict[str, object] = {"named": measure_share(right, recordings)}
    if sounds[0].kind == "note":
        noted = [sound.note.lower() in answer.lower() for sound, answer in zip(sounds, answers, strict=True)]
        found["note"] = measure_share(noted, recordings)
    shown = list(zip(sounds, answers, strict=True))[:NUM_EXAMPLES]
    return {**found, "examples": [{"heard": sound.name, "answer": answer} for sound, answer in shown]}


def take(sound: NamedSound, samples: np.ndarray) -> Tensor:
    """The sound, float32 [T] at 16 kHz."""
    part = samples[sound.start : sound.start + sound.num_samples]
    return torch.from_numpy(part.astype(np.float32) / 32768)


def wish_for(sound: NamedSound) -> Document:
    """The request for a sound in the first of the wordings of training."""
    wish = (WISH_NOTE if sound.kind == "note" else WISH_EFFECT)[0]
    return Document([Turn("user", wish.format(name=sound.source, note=sound.note))])


def describe_sound(wave: Tensor) -> Tensor:
    """A sound float [T] → features [D]: mean and spread of each mel band, and how loud its parts are."""
    if len(wave) < WINDOW * 2:
        wave = torch.nn.functional.pad(wave, (0, WINDOW * 2 - len(wave)))
    window = torch.hann_window(WINDOW)
    power = torch.stft(wave, WINDOW, HOP, window=window, return_complex=True).abs().square()  # [F, n]
    mel = (_make_bands() @ power).clamp_min(1e-8).log()  # [BANDS, n]
    mel = mel - mel.max()
    loud = torch.nn.functional.adaptive_avg_pool1d(mel.mean(0)[None, None], STEPS)[0, 0]
    return torch.cat([mel.mean(1), mel.std(1), loud])


def _make_bands() -> Tensor:
    """Triangular mel bands, [BANDS, WINDOW / 2 + 1]."""
    hertz = torch.linspace(0, RATE_HZ / 2, WINDOW // 2 + 1)
    top = 2595 * np.log10(1 + RATE_HZ / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, float(top), BANDS + 2) / 2595) - 1)
    rising = (hertz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - hertz) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp_min(0)


SUITE = Suite(run)

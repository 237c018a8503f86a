"""Sentences that were never trained on → codes → speech, read by Whisper tiny.en beside the originals.

Word error rates in per cent for every voice: of the original recordings, of those rebuilt from their codes, and the
difference. `all` pools the synthetic voices; the human speaker, in no training set, is reported apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from unimodal.evaluation import Report
from unimodal.evaluation.judges import Whisper, word_error_rate
from unimodal.evaluation.prepared import Speech
from unimodal.pipeline import Unimodal

DEFAULT_LIMIT = 60  # of each voice
HUMAN = "human"
BATCH = 8


def run(model: Unimodal, data_folder: Path, limit: int | None, seed: int, report: Report) -> dict[str, Any]:
    speech, whisper = Speech.load(data_folder), Whisper()
    voices = speech.unseen(limit or DEFAULT_LIMIT, seed)
    figures: dict[str, Any] = {}
    pooled: tuple[list[str], list[str], list[str]] = ([], [], [])
    for voice, items in voices.items():
        texts, heard, heard_rebuilt = [], [], []
        for start in range(0, len(items), BATCH):
            report(f"coding and reading the voice {voice}", start, len(items))
            part = items[start : start + BATCH]
            sounds = [speech.sound(item) for item in part]
            texts += [item["text"] for item in part]
            heard += [whisper.transcribe(sound) for sound in sounds]
            heard_rebuilt += [whisper.transcribe(sound) for sound in rebuild(model, sounds)]
        figures[voice] = _figures(texts, heard, heard_rebuilt)
        if voice != HUMAN:
            for whole, own in zip(pooled, (texts, heard, heard_rebuilt), strict=True):
                whole.extend(own)
    if pooled[0]:
        figures = {"all": _figures(*pooled), **figures}
    return figures


def rebuild(model: Unimodal, sounds: list[Tensor]) -> list[Tensor]:
    """The sounds through their codes, each cut to its own length."""
    rebuilt = model.coder.decode("audio", model.coder.encode("audio", sounds))
    return [sound[: len(original)] for sound, original in zip(rebuilt, sounds, strict=True)]


def _figures(texts: list[str], heard: list[str], heard_rebuilt: list[str]) -> dict[str, Any]:
    original, rebuilt = word_error_rate(texts, heard), word_error_rate(texts, heard_rebuilt)
    return {
        "utterances": len(texts),
        "wer_original": original,
        "wer_rebuilt": rebuilt,
        "wer_added": round(rebuilt - original, 2),
    }

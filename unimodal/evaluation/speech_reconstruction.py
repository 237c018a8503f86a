"""Sentences that were never trained on → codes → speech, read by a recogniser beside the originals.

`judge` is the recogniser: Whisper tiny.en, or Moonshine where Whisper is a part of the model's tokenizer.

Word error rates in per cent for every voice: of the original recordings, of those rebuilt from their codes, and the
difference; and how natural both sound to DNSMOS, 1 to 5. `all` pools the synthetic voices; the human speaker, who is in
no training set, is reported apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from torch import Tensor

from unimodal.evaluation.judges import DnsmosJudge, compute_word_error_rate
from unimodal.evaluation.listeners import choose_listener
from unimodal.evaluation.prepared import Speech
from unimodal.evaluation.suite import ReportProgress, Suite
from unimodal.pipeline import Unimodal

DEFAULT_LIMIT = 60  # of each voice
HUMAN = "human"
BATCH = 8


def run(model: Unimodal, data_folder: Path, limit: int | None, seed: int, report: ReportProgress) -> dict[str, object]:
    speech, listener, dnsmos = Speech.load(data_folder), choose_listener(model), DnsmosJudge()
    figures: dict[str, object] = {}
    pooled = HeardSpeech()
    for voice, items in speech.choose_unseen(limit or DEFAULT_LIMIT, seed).items():
        own = HeardSpeech()
        for start in range(0, len(items), BATCH):
            report(f"coding and reading the voice {voice}", start, len(items))
            part = items[start : start + BATCH]
            sounds = [speech.take(item) for item in part]
            for item, original, rebuilt in zip(part, sounds, rebuild(model, sounds), strict=True):
                own.texts.append(item.text)
                for side, sound in ((own.original, original), (own.rebuilt, rebuilt)):
                    side.append((listener.transcribe(sound), dnsmos.score(sound)))
        figures[voice] = own.compare()
        if voice != HUMAN:
            pooled.add(own)
    if pooled.texts:
        figures = {"all": pooled.compare(), **figures}
    return {"judge": listener.name, **figures}


@dataclass
class HeardSpeech:
    """Sentences, and for each the transcript and the DNSMOS of its original and of its rebuilt sound."""

    texts: list[str] = field(default_factory=list)
    original: list[tuple[str, float]] = field(default_factory=list)
    rebuilt: list[tuple[str, float]] = field(default_factory=list)

    def add(self, other: HeardSpeech) -> None:
        self.texts += other.texts
        self.original += other.original
        self.rebuilt += other.rebuilt

    def compare(self) -> dict[str, object]:
        """The word error rates in per cent and the DNSMOS of these sentences."""
        original, rebuilt = (
            compute_word_error_rate(self.texts, [text for text, _ in side]) for side in (self.original, self.rebuilt)
        )
        return {
            "utterances": len(self.texts),
            "wer_original": original,
            "wer_rebuilt": rebuilt,
            "wer_added": round(rebuilt - original, 2),
            "dnsmos_original": round(fmean(score for _, score in self.original), 2),
            "dnsmos_rebuilt": round(fmean(score for _, score in self.rebuilt), 2),
        }


def rebuild(model: Unimodal, sounds: list[Tensor]) -> list[Tensor]:
    """The sounds decoded from their codes, each cut to the length of its original."""
    rebuilt = model.coder.decode("audio", model.coder.encode("audio", sounds))
    return [sound[: len(original)] for sound, original in zip(rebuilt, sounds, strict=True)]


SUITE = Suite(run)

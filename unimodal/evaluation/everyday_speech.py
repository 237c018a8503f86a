"""Speech of a source that no training text came from: read, and said, with Moonshine as the judge.

Unseen sentences of each voice of the prepared speech are transcribed; word error rates are in per cent, after Whisper's
English normaliser, with 95% intervals over sentences (bootstrap of 1,000, seed 0). `judge_wer` is that of Moonshine
tiny on the same recordings, `rebuilt` that of Moonshine on recordings sent through the tokenizer. `speaking` says some
of the sentences in the voices of training, and Moonshine listens; `dnsmos` is their naturalness, 1 to 5. Which source
the sentences come from is decided when the speech is prepared: State of the Union addresses by `tools/pack_voices.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from torch import Tensor

from unimodal.evaluation.asking import answer_media, answer_texts, ask_what_is_said
from unimodal.evaluation.judges import DnsmosJudge, count_word_errors
from unimodal.evaluation.prepared import Speech, sample
from unimodal.evaluation.speech_reconstruction import rebuild
from unimodal.evaluation.suite import ReportProgress, Suite
from unimodal.evaluation.tokenizer_bench.sound_judges import load_recogniser
from unimodal.pipeline import Unimodal
from unimodal.sequence.document import Document, Turn

DEFAULT_LIMIT = 200  # of each voice
SPOKEN_LIMIT = 100
DRAWS = 1000


def run(model: Unimodal, data_folder: Path, limit: int | None, seed: int, report: ReportProgress) -> dict[str, object]:
    speech = Speech.load(data_folder)
    listen = load_recogniser("moonshine")
    figures: dict[str, object] = {"judge": "Moonshine tiny"}
    voices = speech.choose_unseen(limit or DEFAULT_LIMIT, seed, model.coder.find_max_seconds("audio"))
    for voice, items in voices.items():
        sounds = [speech.take(item) for item in items]
        documents = ask_what_is_said(model, sounds, report, f"coding the voice {voice}")
        texts = [item.text for item in items]
        answers = answer_texts(model, documents, seed, report)
        heard, rebuilt = [], []
        for index, sound in enumerate(sounds):
            report(f"Moonshine listens to the voice {voice}", index, len(items))
            heard.append(listen(sound))
            rebuilt.append(listen(rebuild(model, [sound])[0]))
        figures[voice] = {
            "utterances": len(items), "wer": measure_errors(texts, answers), "judge_wer": measure_errors(texts, heard),
            "rebuilt": measure_errors(texts, rebuilt),
        }  # fmt: skip
    figures["speaking"] = speak(model, speech, listen, limit or SPOKEN_LIMIT, seed, report)
    return figures


def speak(
    model: Unimodal, speech: Speech, listen: Callable[[Tensor], str], limit: int, seed: int, report: ReportProgress
) -> dict[str, object]:
    """Word errors of Moonshine on what the model says of unseen sentences, in the voices of training in turn."""
    voices = sorted({item.voice for item in speech.utterances if item.split == "train"})
    texts = sorted({item.text for item in speech.utterances if item.split == "test"})
    texts = [texts[row] for row in sample(np.arange(len(texts)), limit, seed)]
    if not texts or not voices:
        return {"sentences": 0}
    voices = [voice for voice in voices if not model.wording.voices or voice in model.wording.voices] or [""]
    asked = [voices[index % len(voices)] or None for index in range(len(texts))]
    wishes = [model.wording.phrase_request(text, "audio", voice) for text, voice in zip(texts, asked, strict=True)]
    spoken = answer_media(model, [Document([Turn("user", wish)]) for wish in wishes], "audio", seed, report, "speaking")
    heard = [listen(sound) for sound in spoken]
    dnsmos = DnsmosJudge()
    scores = [dnsmos.score(sound) for sound in spoken]
    return {"sentences": len(texts), "wer": measure_errors(texts, heard), "dnsmos": round(fmean(scores), 2)}


def measure_errors(texts: Sequence[str], heard: Sequence[str]) -> dict[str, float]:
    """The word error rate in per cent, and the bounds between which 95% of 1,000 samples of the sentences lie."""
    each = np.array(count_word_errors(texts, heard), np.int64).reshape(-1, 2)  # [U, 2]: errors and words
    if not len(each):
        return {"percent": 0.0, "low": 0.0, "high": 0.0}
    sampled = each[np.random.default_rng(0).integers(0, len(each), (DRAWS, len(each)))].sum(1)  # [DRAWS, 2]
    low, high = np.percentile(100 * sampled[:, 0] / sampled[:, 1], (2.5, 97.5))
    whole = 100 * each[:, 0].sum() / each[:, 1].sum()
    return {"percent": round(float(whole), 2), "low": round(float(low), 1), "high": round(float(high), 1)}


SUITE = Suite(run)

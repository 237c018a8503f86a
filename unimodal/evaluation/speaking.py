"""Text → speech: the word error rate of a recogniser on the model's speech, for sentences that it was never trained on.

`judge` is the recogniser: Whisper tiny.en, or Moonshine where Whisper is a part of the model's tokenizer.

The voices of the training data take turns and are requested by name. `rebuilt_wer` is the rate of real recordings of
the same sentences sent through the audio tokenizer, about the best that a decoder could reach. `dnsmos` is the
naturalness of the speech, 1 to 5. If the model says a sentence several times and chooses one
(`pipeline/speech_reading.py`), `plain_wer` is the rate of the first.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import numpy as np

from unimodal.evaluation.asking import answer_media
from unimodal.evaluation.judges import DnsmosJudge, compute_word_error_rate
from unimodal.evaluation.listeners import choose_listener
from unimodal.evaluation.prepared import Speech, SpokenSentence, sample
from unimodal.evaluation.speech_reconstruction import rebuild
from unimodal.evaluation.suite import ReportProgress, Suite
from unimodal.pipeline import Unimodal
from unimodal.sequence.document import Document, Turn

DEFAULT_LIMIT = 100  # sentences in all


def run(model: Unimodal, data_folder: Path, limit: int | None, seed: int, report: ReportProgress) -> dict[str, object]:
    speech, listener, dnsmos = Speech.load(data_folder), choose_listener(model), DnsmosJudge()
    voices = sorted({item.voice for item in speech.utterances if item.split == "train"})
    first_of: dict[str, SpokenSentence] = {}
    for item in speech.utterances:
        if item.split == "test":
            first_of.setdefault(item.text, item)
    if not first_of or not voices:
        raise ValueError(f"{data_folder}/speech has no test sentences or no training voices; prepare it again")
    items = list(first_of.values())
    items = [items[row] for row in sample(np.arange(len(items)), limit or DEFAULT_LIMIT, seed)]
    texts = [item.text for item in items]
    asked = [voices[index % len(voices)] for index in range(len(texts))]
    documents = [
        Document([Turn("user", model.wording.phrase_request(text, "audio", voice))])
        for text, voice in zip(texts, asked, strict=True)
    ]
    spoken = answer_media(model, documents, "audio", seed, report, "speaking")
    chooses = model.processor.reading is not None and model.processor.reading.sayings > 1
    plain = answer_media(model, documents, "audio", seed, report, "speaking", "plain") if chooses else spoken
    heard, heard_rebuilt, scores, seconds = [], [], [], 0.0
    rate_hz = model.coder.get_rate("audio") or 16_000
    for index, (sound, item) in enumerate(zip(spoken, items, strict=True)):
        report(f"{listener.name} listens", index, len(texts))
        seconds += len(sound) / rate_hz
        heard.append(listener.transcribe(sound))
        scores.append(dnsmos.score(sound))
        heard_rebuilt.append(listener.transcribe(rebuild(model, [speech.take(item)])[0]))
    heard_plain = [listener.transcribe(sound) for sound in plain] if chooses else heard
    by_voice = {}
    for voice in voices:
        own = [index for index, name in enumerate(asked) if name == voice]
        if own:
            by_voice[voice] = compute_word_error_rate([texts[i] for i in own], [heard[i] for i in own])
    return {
        "judge": listener.name,
        "sentences": len(texts),
        "wer": compute_word_error_rate(texts, heard),
        "plain_wer": compute_word_error_rate(texts, heard_plain),
        "rebuilt_wer": compute_word_error_rate(texts, heard_rebuilt),
        "dnsmos": round(fmean(scores), 2),
        "mean_seconds": round(seconds / len(texts), 2),
        "wer_by_voice": by_voice,
    }


SUITE = Suite(run)

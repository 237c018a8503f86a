"""Speech → text: word error rate of the model's transcripts of sentences that it was never trained on.

For each voice, in per cent, after Whisper's English normaliser on both sides. `all` pools the synthetic voices; the
human speaker, who is in no training set, is reported apart. If the model searches for its transcripts
(`generation/ctc_beam.py`), `plain_wer` is the rate of transcripts written token by token. `whisper_wer` is that of
Whisper tiny.en on the same recordings.
"""

from __future__ import annotations

from pathlib import Path

from unimodal.evaluation.asking import answer_texts, ask_what_is_said
from unimodal.evaluation.judges import WhisperJudge, compute_word_error_rate
from unimodal.evaluation.prepared import Speech
from unimodal.evaluation.suite import ReportProgress, Suite
from unimodal.pipeline import Unimodal

DEFAULT_LIMIT = 60  # of each voice
HUMAN, HUMAN_LIMIT = "human", 182
NUM_EXAMPLES = 4


def run(model: Unimodal, data_folder: Path, limit: int | None, seed: int, report: ReportProgress) -> dict[str, object]:
    speech, whisper = Speech.load(data_folder), WhisperJudge()
    longest_s = model.coder.find_max_seconds("audio")
    voices = speech.choose_unseen(limit or DEFAULT_LIMIT, seed, longest_s)
    if HUMAN in voices and limit is None:
        voices[HUMAN] = speech.choose_unseen(HUMAN_LIMIT, seed, longest_s)[HUMAN]
    figures: dict[str, object] = {}
    pooled: tuple[list[str], ...] = ([], [], [], [])
    for voice, items in voices.items():
        sounds = [speech.take(item) for item in items]
        documents = ask_what_is_said(model, sounds, report, f"coding the voice {voice}")
        texts = [item.text for item in items]
        answers = answer_texts(model, documents, seed, report)
        plain = answer_texts(model, documents, seed, report, "plain") if model.processor.reading else answers
        heard = []
        for index, sound in enumerate(sounds):
            report(f"Whisper reads the voice {voice}", index, len(items))
            heard.append(whisper.transcribe(sound))
        figures[voice] = _compare(texts, answers, plain, heard) | {
            "examples": [
                {"said": said, "answer": answer}
                for said, answer in list(zip(texts, answers, strict=True))[:NUM_EXAMPLES]
            ]
        }
        if voice != HUMAN:
            for whole, own in zip(pooled, (texts, answers, plain, heard), strict=True):
                whole.extend(own)
    return ({"all": _compare(*pooled)} if pooled[0] else {}) | figures


def _compare(texts: list[str], answers: list[str], plain: list[str], heard: list[str]) -> dict[str, object]:
    """Word error rates in per cent against texts: of the model, of the model token by token, and of Whisper."""
    return {
        "utterances": len(texts),
        "wer": compute_word_error_rate(texts, answers),
        "plain_wer": compute_word_error_rate(texts, plain),
        "whisper_wer": compute_word_error_rate(texts, heard),
    }


SUITE = Suite(run)

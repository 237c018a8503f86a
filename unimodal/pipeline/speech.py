"""Text to be spoken → utterances that the model can say: the one place where a text becomes speech.

A model was trained to say one sentence, within a number of seconds. So a request in its wording for speech is split at
sentences, and long sentences at clauses and between words (`text/sentences.py`). Each piece is asked for in the trained
wording, and the sounds are joined with a pause. A text that the model has no way to say is refused, with the count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from unimodal.coder.outputs import Output
from unimodal.pipeline.parts import LoadedModel
from unimodal.sequence.document import MEDIA_PARTS, Document, Text, Turn
from unimodal.text.sentences import split_sentences, split_utterances

MOST_CHARACTERS = 4096  # of one request for speech; OpenAI's limit, too
LETTERS_PER_S = 10.0  # of slow speech, to find what fits into the seconds that a model speaks at a time
PAUSE_S = 0.2  # between two utterances


def list_utterances(model: LoadedModel, document: Document, to: str | None) -> list[Document]:
    """The document of each utterance of a request in the trained wording for speech; [] for any other request.

    Raises ValueError, with the count, for what cannot be said.
    """
    last = document.turns[-1] if document.turns else None
    if to != "audio" or last is None or last.role != "user" or not all(isinstance(part, Text) for part in last.parts):
        return []
    found = model.wording.find_speech(last.text.strip())
    if found is None:
        return []
    wish, text = found
    if len(text) > MOST_CHARACTERS:
        raise ValueError(
            f"{len(text):,} characters are to be spoken, and at most {MOST_CHARACTERS:,} may be; split them"
        )
    model.wording.check_sayable(text)
    breath, sentences = find_breath(model), map(model.wording.spell_numerals, split_sentences(text))
    pieces = [piece for sentence in sentences for piece in split_utterances(sentence, breath)]
    said = [model.wording.spell_utterance(piece) for piece in pieces]
    return [Document([*document.turns[:-1], Turn("user", wish.replace("{text}", words))]) for words in said if words]


def find_breath(model: LoadedModel) -> int:
    """How many letters the model says at a time: as many as it was trained to, or as the longest span has time for."""
    if model.wording.breath is not None:
        return model.wording.breath
    codes = model.processor.max_codes.get("audio", model.max_positions // 2)
    per_second = model.coder.get_tokenizer("audio").tokens_per_second
    return MOST_CHARACTERS if not per_second else max(20, int(codes / per_second * LETTERS_PER_S))


def join_sounds(outputs: Sequence[Output], segments: Sequence[tuple[str, int | None]]) -> list[Output]:
    """Joins the sounds of an answer, with a pause between them, and their codes without one.

    segments: of the tokenizer's rows. What has a fixed number of codes, such as the voice, is that of the first sound.
    """
    sounds = [output for output in outputs if output.modality == "audio" and output.media is not None]
    if len(sounds) < 2:
        return list(outputs)
    pieces = [sounds[0].media]
    for sound in sounds[1:]:
        assert sound.media is not None
        pieces += [make_pause(sound.media, sound.rate), sound.media]
    codes = join_rows([sound.part.require_codes() for sound in sounds if not isinstance(sound.part, Text)], segments)
    joined = Output(
        MEDIA_PARTS["audio"](codes=codes), torch.cat([piece for piece in pieces if piece is not None]), sounds[0].rate
    )
    return [joined, *(output for output in outputs if output not in sounds)]


def join_rows(rows: Sequence[np.ndarray], segments: Sequence[tuple[str, int | None]]) -> np.ndarray:
    """One row of several, [N] or [N, G] each: what has a fixed number of codes as it is in the first, in front of and
    behind the codes that run on from row to row."""
    counts = [count for _, count in segments]
    if None not in counts:
        return np.concatenate(rows)
    place = counts.index(None)
    front, back = (sum(count or 0 for count in part) for part in (counts[:place], counts[place + 1 :]))
    middles = [row[front : max(front, len(row) - back)] for row in rows]
    return np.concatenate([rows[0][:front], *middles, rows[0][max(front, len(rows[0]) - back) :]])


def make_pause(sound: torch.Tensor, rate_hz: float | None) -> torch.Tensor:
    """The silence between two utterances, [T], like `sound`."""
    return sound.new_zeros(int(PAUSE_S * (rate_hz or 16_000)))

"""Requests that a model with a second reading of speech answers by a search.

A transcript is searched for with both readings (`generation/ctc_beam.py`). For speech, several utterances of the same
words are written, and the one that the model itself reads best is given (`generation/search/ctc_verifier.py`).
"""

from __future__ import annotations

from functools import partial

from unimodal.generation.ctc_beam import compose_transcript
from unimodal.generation.request import Composition, GenerationRequest
from unimodal.generation.search.best_of_n import BestOfN
from unimodal.generation.search.ctc_verifier import CtcVerifier
from unimodal.pipeline.composed import ComposedAnswer
from unimodal.pipeline.parts import LoadedModel
from unimodal.pipeline.requests import Prepared
from unimodal.pipeline.search import find_best
from unimodal.sequence.document import MEDIA_PARTS, Document, Text, Turn

ROWS_AT_ONCE = 16  # of the utterances of one answer, once its first is there


def make_speech_answer(
    model: LoadedModel, prepared: Prepared, judged_at_once: int | None = None
) -> ComposedAnswer | None:
    """The answer to a request for a transcript, for speech that the second reading chooses, or for several utterances.

    None for a request that is one row. judged_at_once: drafts that the reading judges in one piece of work; None: all.
    """
    by_reading = prepared.settings.decoder is None and not prepared.methods
    if by_reading and is_transcription(model, prepared):
        return ComposedAnswer("text", [lambda: transcribe(model, prepared)])
    each = prepared.utterances or (prepared,)
    words = [find_words_to_say(model, one) if by_reading else None for one in each]
    if len(each) == 1 and words[0] is None:
        return None
    parts = [partial(say, model, one, said, judged_at_once) for one, said in zip(each, words, strict=True)]
    sayings = 1 if words[0] is None or model.processor.reading is None else model.processor.reading.sayings
    at_once = max(1, ROWS_AT_ONCE // sayings)
    return ComposedAnswer(
        str(prepared.config.force), parts, at_once, model.vocabulary.get_control_id("<|end_of_turn|>")
    )


def say(
    model: LoadedModel, prepared: Prepared, words: str | None, judged_at_once: int | None
) -> Composition[list[int]]:
    """The ids of an utterance: the best of several, by the words that they should spell, or one."""
    if words is not None:
        return (yield from say_best(model, words, prepared, judged_at_once))
    [ids] = yield [GenerationRequest(prepared.prompt, prepared.config, methods=prepared.methods)]
    return list(ids)


def is_transcription(model: LoadedModel, prepared: Prepared) -> bool:
    """Whether a request asks for the words of its last sound in the trained question.

    False for a model without a second reading (`reading` of its `processor_config.json`), with sampling, and with a
    cache that is compressed.
    """
    config = prepared.config
    reading, text = model.processor.reading, config.sampling.get("text")
    if reading is None or config.force not in (None, "text") or text is None or text.temperature > 0:
        return False
    parts = prepared.document.turns[-1].parts if prepared.document.turns else ()
    media = [part for part in parts if not isinstance(part, Text)]
    words = " ".join(part.text for part in parts if isinstance(part, Text)).strip()
    return (
        len(media) == 1
        and media[0].modality == reading.modality
        and words == model.wording.ask(reading.modality)
        and "text" in (config.allow or ("text",))
        and not model.engine.intercepted
    )


def find_words_to_say(model: LoadedModel, prepared: Prepared) -> str | None:
    """The words that a request in the trained wording wants spoken, if the model chooses between several utterances.

    None for other requests, for a model without `sayings` of its `reading`, and if sampling cannot give different ones.
    """
    reading, config = model.processor.reading, prepared.config
    if reading is None or reading.sayings < 2 or config.force != reading.modality or model.engine.intercepted:
        return None
    sampling = config.sampling.get(reading.modality)
    parts = prepared.document.turns[-1].parts if prepared.document.turns else ()
    if sampling is None or sampling.temperature == 0 or not all(isinstance(part, Text) for part in parts):
        return None
    return model.wording.extract_speech(" ".join(part.text for part in parts if isinstance(part, Text)).strip())


def transcribe(model: LoadedModel, prepared: Prepared) -> Composition[list[int]]:
    """The ids of the transcript of the last sound in a prompt."""
    reading = model.processor.reading
    assert reading is not None
    codes, blank = _find_rows(model)
    engine, weight, beams = model.engine, reading.weight, reading.beams
    return compose_transcript(engine, prepared.prompt, prepared.config, codes, blank, weight, beams)


def say_best(
    model: LoadedModel, words: str, prepared: Prepared, judged_at_once: int | None = None
) -> Composition[list[int]]:
    """The ids of one of several utterances, with seeds of their own: the one whose codes spell the words best."""
    reading = model.processor.reading
    assert reading is not None
    codes, blank = _find_rows(model)
    modality, vocabulary = reading.modality, model.vocabulary

    def render_question(answer: list[int]) -> list[int]:
        start = answer.index(vocabulary.get_start_id(modality))
        stop = answer.index(vocabulary.get_end_id(modality), start) + 1
        heard = MEDIA_PARTS[modality](codes=vocabulary.decode_span(answer[start:stop])[1])
        asked = Document([Turn("user", [heard, Text(model.wording.ask(modality))])])
        return model.read(model.template.render(asked, add_generation_prompt=True))

    answered = model.template.render(Document([Turn("user", "?"), Turn("assistant", words)]))
    spelled = [label for label in answered.labels.tolist() if 0 <= label < model.vocabulary.text_size]
    verifier = CtcVerifier(model.engine, render_question, spelled, codes, blank)
    return find_best(model, BestOfN(reading.sayings), prepared, verifier, judged_at_once)


def _find_rows(model: LoadedModel) -> tuple[range, int]:
    """The rows of the codes that are read, and the row of the blank."""
    reading, vocabulary = model.processor.reading, model.vocabulary
    assert reading is not None
    layout = vocabulary.get_layout(reading.modality)
    block = layout.segments[layout.open_segment or 0].block  # not that of codes of the whole sound in front
    return vocabulary.get_block_range(block), vocabulary.get_control_id(reading.blank)

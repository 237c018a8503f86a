"""Requests that a model with a second reading of speech answers in a way of their own, each by itself.

A transcript is searched for with both readings (`generation/ctc_beam.py`). Of several utterances of the same words the
one is given that the model itself reads best (`generation/search/ctc_verifier.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from unimodal.generation.ctc_beam import ctc_beam_search
from unimodal.generation.request import GenerationConfig, TokenEvent
from unimodal.generation.search.best_of_n import BestOfN
from unimodal.generation.search.ctc_verifier import CtcVerifier
from unimodal.sequence.document import MEDIA_PARTS, Document, Text, Turn

if TYPE_CHECKING:
    from unimodal.pipeline.unimodal import Unimodal

OnToken = Callable[[TokenEvent], Any]


def own_way(
    model: Unimodal, document: Document, prompt: Sequence[int], config: GenerationConfig
) -> Callable[[OnToken | None, int], list[int]] | None:
    """(on_token, row) → the ids of the answer, which ``on_token`` is told at its end; None for a request that the
    engine answers token by token, in a batch. What is returned raises ValueError for what the engine refuses."""
    if is_transcription(model, document, config):
        return partial(_at_once, partial(transcribe, model, prompt, config), "text")
    words = words_to_say(model, document, config)
    if words is not None:
        return partial(_at_once, partial(say, model, words, prompt, config), str(config.force))
    return None


def is_transcription(model: Unimodal, document: Document, config: GenerationConfig) -> bool:
    """Whether a document asks for the words of its last sound in the trained question, of a model that was trained to
    read them at the codes too (`reading` of its `processor_config.json`), without sampling and with its whole cache."""
    reading, text = model.processor.reading, config.sampling.get("text")
    if reading is None or config.force not in (None, "text") or text is None or text.temperature > 0:
        return False
    parts = document.turns[-1].parts if document.turns else []
    media = [part for part in parts if not isinstance(part, Text)]
    words = " ".join(part.text for part in parts if isinstance(part, Text)).strip()
    return (
        len(media) == 1
        and media[0].modality == reading.modality
        and words == model.wording.question(reading.modality)
        and "text" in (config.allow or ("text",))
        and not model.engine.intercepted
    )


def words_to_say(model: Unimodal, document: Document, config: GenerationConfig) -> str | None:
    """The words that a request in the trained wording wants spoken, of a model that chooses between several utterances
    (`sayings` of its `reading`); None for all other requests, and where sampling cannot give different ones."""
    reading = model.processor.reading
    if reading is None or reading.sayings < 2 or config.force != reading.modality or model.engine.intercepted:
        return None
    sampling = config.sampling.get(reading.modality)
    parts = document.turns[-1].parts if document.turns else []
    if sampling is None or sampling.temperature == 0 or not all(isinstance(part, Text) for part in parts):
        return None
    return model.wording.said(" ".join(part.text for part in parts if isinstance(part, Text)).strip())


def transcribe(model: Unimodal, prompt: Sequence[int], config: GenerationConfig) -> list[int]:
    """The ids of the transcript of the last sound in a prompt."""
    reading = model.processor.reading
    assert reading is not None
    codes, blank = _rows(model)
    return ctc_beam_search(model.engine, prompt, config, codes, blank, reading.weight, reading.beams)


def say(model: Unimodal, words: str, prompt: Sequence[int], config: GenerationConfig) -> list[int]:
    """The ids of the utterance, of several with seeds of their own, whose codes spell the words best."""
    reading = model.processor.reading
    assert reading is not None
    codes, blank = _rows(model)

    def asked(answer: Sequence[int]) -> Document:
        heard = MEDIA_PARTS[reading.modality](codes=[row - codes.start for row in answer if row in codes])
        return Document([Turn("user", [heard, Text(model.wording.question(reading.modality))])])

    def shown(answer: list[int]) -> list[int]:
        return model.read(model.template.render(asked(answer), add_generation_prompt=True))

    told = model.template.render(Document([*asked([codes.start]).turns, Turn("assistant", words)]))
    wanted = [label for label in told.labels.tolist() if 0 <= label < model.vocabulary.text_size]
    verifier = CtcVerifier(model.engine, shown, wanted, codes, blank)
    return BestOfN(reading.sayings).run(model.engine, prompt, config, verifier).answer


def _rows(model: Unimodal) -> tuple[range, int]:
    """The rows of the codes that are read, and the one that is the blank."""
    reading, vocabulary = model.processor.reading, model.vocabulary
    assert reading is not None
    block = vocabulary.layout(reading.modality).segments[0].block
    return vocabulary.block_range(block), vocabulary.control_id(reading.blank)


def _at_once(answered: Callable[[], list[int]], modality: str, on_token: OnToken | None, row: int) -> list[int]:
    answer = answered()
    for index, token in enumerate(answer if on_token is not None else ()):
        if on_token(TokenEvent(row, index, token, modality, index == len(answer) - 1)):  # type: ignore[misc]
            return answer[: index + 1]
    return answer

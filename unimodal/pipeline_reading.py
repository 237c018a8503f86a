"""Which requests are transcriptions that a model reads in both of its ways; the search is `generation/ctc_beam.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from unimodal.generation.ctc_beam import ctc_beam_search
from unimodal.generation.request import GenerationConfig, TokenEvent
from unimodal.sequence.document import Document, Text

if TYPE_CHECKING:
    from unimodal.pipeline import Unimodal


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


def transcribe(
    model: Unimodal,
    prompt: Sequence[int],
    config: GenerationConfig,
    on_token: Callable[[TokenEvent], Any] | None = None,
    row: int = 0,
) -> list[int]:
    """The ids of the answer; ``on_token`` is told them at its end. Raises ValueError for what the engine refuses."""
    reading = model.processor.reading
    assert reading is not None
    codes = model.vocabulary.block_range(model.vocabulary.layout(reading.modality).segments[0].block)
    blank = model.vocabulary.control_id(reading.blank)
    answer = ctc_beam_search(model.engine, prompt, config, codes, blank, reading.weight, reading.beams)
    for index, token in enumerate(answer if on_token is not None else ()):
        if on_token(TokenEvent(row, index, token, "text", index == len(answer) - 1)):  # type: ignore[misc]
            return answer[: index + 1]
    return answer

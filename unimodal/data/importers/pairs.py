"""Pairs of a medium and a text, as Hugging Face features and tars hold them: read the medium, or make it.

    {"image": {"bytes": …}, "text": "an apple"}                      what is this? → an apple
                                                                     an apple      → a picture
    {"image": {"bytes": …}, "question": "which fruit?", "answer": "an apple"}

Columns of type Image, Audio and Video are found by their type, whatever they are called; a text by its usual names.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from unimodal.config import Config
from unimodal.data.importers.columns import media_of, text_of
from unimodal.data.media_folder import MediaFolder
from unimodal.data.messages import Conversation, TextPart, parse_conversation
from unimodal.data.rows import Row
from unimodal.data.sources import ASK

TEXT_COLUMNS = ("text", "caption", "transcription", "transcript", "sentence", "description")


class PairsConfig(Config):
    """How a medium and its text become a question and an answer."""

    direction: Literal["media_to_text", "text_to_media"] = "media_to_text"
    question: str | None = None  # asked about a medium; None: the first of the questions that nano was trained on
    wish: str = "{text}"  # asks for a medium

    @field_validator("wish")
    @classmethod
    def _has_text(cls, value: str) -> str:
        if "{text}" not in value:
            raise ValueError("the wish must hold {text}, where the text of the row goes")
        return value


def import_pairs(row: Row, folder: MediaFolder, pairs: PairsConfig | None = None) -> Conversation:
    """Raises ValueError unless the row has at least one medium and exactly one text (or a question and an answer)."""
    pairs = pairs or PairsConfig()
    media = [part for parts in media_of(row, folder).values() for part in parts]
    if not media:
        raise ValueError(f"there is no image, audio or video among {', '.join(row) or 'no columns'}")
    if row.get("question") is not None and row.get("answer") is not None:
        question, text = text_of(row["question"], "question"), text_of(row["answer"], "answer")
        return _conversation([*media, TextPart(text=question)], [TextPart(text=text)])
    found = [column for column in TEXT_COLUMNS if row.get(column) is not None]
    if len(found) != 1:
        raise ValueError(
            f"{' and '.join(found) or 'none'} of the columns {', '.join(TEXT_COLUMNS)} is given; one must be: "
            "rename it with columns"
        )
    text = text_of(row[found[0]], found[0])
    if pairs.direction == "text_to_media":
        return _conversation([TextPart(text=pairs.wish.replace("{text}", text))], media)
    question = pairs.question if pairs.question is not None else ASK[media[0].type][0]
    return _conversation([*media, TextPart(text=question)], [TextPart(text=text)])


def _conversation(asked: list[Any], answer: list[Any]) -> Conversation:
    return parse_conversation([{"role": "user", "content": asked}, {"role": "assistant", "content": answer}])

"""Pairs of a medium and a text, as Hugging Face features, folders and tars hold them: read the medium, or make it.

    {"image": {"bytes": …}, "text": "an apple"}                      what is this? → an apple
                                                                     an apple      → a picture
    {"image": {"bytes": …}, "label": "apple"}                        the same, with a class for a text
    {"image": {"bytes": …}, "question": "which fruit?", "answer": "an apple"}
    {"image": {"bytes": …}, "question": "which fruit?", "answers": ["apple", "an apple", "apple"]}     the most frequent

Columns of type Image, Audio, Video and ClassLabel are found by their type, whatever they are called; a text by its
usual names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import field_validator

from unimodal.config import Config
from unimodal.data.importers.columns import MessagePart, read_json_list, read_media, read_text
from unimodal.data.media_folder import MediaFolder
from unimodal.data.messages import Conversation, TextPart, parse_conversation
from unimodal.data.rows import Row
from unimodal.data.sources import ASK

TEXT_COLUMNS = ("text", "caption", "transcription", "transcript", "sentence", "description")
LABEL_COLUMN = "label"
ANSWER_COLUMNS = ("answer", "multiple_choice_answer", "answers")


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
    media = [part for parts in read_media(row, folder).values() for part in parts]
    if not media:
        raise ValueError(f"there is no image, audio or video among {', '.join(row) or 'no columns'}")
    if row.get("question") is not None:
        asked = read_text(row["question"], "question")
        return _make_conversation([*media, TextPart(text=asked)], [TextPart(text=_find_answer(row))])
    text = _find_text(row)
    if pairs.direction == "text_to_media":
        return _make_conversation([TextPart(text=pairs.wish.replace("{text}", text))], media)
    question = pairs.question
    if question is None:
        if media[0].type not in ASK:
            raise ValueError(f"there is no usual question about {media[0].type}; set pairs.question")
        question = ASK[media[0].type][0]
    return _make_conversation([*media, TextPart(text=question)], [TextPart(text=text)])


def _find_text(row: Row) -> str:
    """The text of a row; columns that say the same are one."""
    found = [column for column in TEXT_COLUMNS if row.get(column) is not None]
    texts = {read_text(row[column], column).strip() for column in found}
    if len(texts) == 1:
        return read_text(row[found[0]], found[0])
    if not found and row.get(LABEL_COLUMN) is not None:
        return _read_label(row[LABEL_COLUMN])
    raise ValueError(
        f"{' and '.join(found) or 'none'} of the columns {', '.join(TEXT_COLUMNS)} is given; one must be: "
        f"rename it with columns{', or name the others in ignore' if found else ''}"
    )


def _read_label(label: object) -> str:
    if not isinstance(label, str):
        raise ValueError(
            f"the label is {label!r}, and what it is called is not known; give its name as a text, or a column of type "
            "ClassLabel"
        )
    return label


def _find_answer(row: Row) -> str:
    """The answer to the question; of several the most frequent, and of those the first."""
    for column in ANSWER_COLUMNS[:2]:
        answer = row.get(column)
        if isinstance(answer, str):
            return answer
        if answer is not None and not isinstance(answer, (list, tuple)):
            return read_text(answer, column)
    for column in ("answers", "answer"):
        answers = _list_answers(row.get(column))
        if answers:
            return Counter(answers).most_common(1)[0][0]
    raise ValueError(f"there is a question and none of {', '.join(ANSWER_COLUMNS)} with a text; rename it with columns")


def _list_answers(value: object) -> list[str]:
    """The texts of `["a", "b"]`, `[{"answer": "a"}, …]` or `{"text": ["a", …]}`."""
    value = read_json_list(value, "answers")
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        value = value.get("text")
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"answers must be a list of texts, this one is {type(value).__name__}")
    return [read_text(one.get("answer") if isinstance(one, Mapping) else one, "an answer") for one in value]


def _make_conversation(asked: Sequence[MessagePart], answer: Sequence[MessagePart]) -> Conversation:
    return parse_conversation([{"role": "user", "content": asked}, {"role": "assistant", "content": answer}])

"""The one schema that every importer writes: messages with typed parts, in pydantic, to a `Document` and back.

    Conversation(messages=[
        {"role": "user", "content": [{"type": "image", "path": "apple.png"}, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": "an apple"},
    ])

A plain string is one text part. A media part has exactly one of `path`, `data` (bytes; base64 in JSON) and `codes`; for
a file of sound or film, `start_s` and `seconds` choose what is read of it. Texts are not interpreted: one that spells a
placeholder, a control or a media token stays a text.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from unimodal.media.registry import MEDIA, join_names
from unimodal.sequence.document import MEDIA_PARTS, Document, Media, Part, Text, Turn


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_bytes="base64")


class TextPart(_Model):
    type: Literal["text"] = "text"
    text: str


class MediaPart(_Model):
    """A picture, a sound, a clip or another registered medium."""

    type: str
    path: str | None = None
    data: bytes | None = Field(default=None, repr=False)
    codes: tuple[int, ...] | tuple[tuple[int, ...], ...] | None = None  # [N] or [N, G]
    grid: tuple[int, int] | None = None  # rows and columns of codes, for models that write them
    start_s: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    seconds: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @field_validator("type")
    @classmethod
    def _check_type(cls, value: str) -> str:
        if value not in MEDIA:
            raise ValueError(f"the type is unknown; use {join_names(('text', *MEDIA))}")
        return value

    @field_validator("data", mode="before")
    @classmethod
    def _from_base64(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        try:
            return base64.b64decode(value.translate(_URL_SAFE), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("the data is not base64") from None

    @model_validator(mode="after")
    def _check_one_source(self) -> MediaPart:
        given = [name for name in ("path", "data", "codes") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of path, data and codes; this part has {' and '.join(given) or 'none'}")
        if self.start_s > 0 or self.seconds is not None:
            if "t" not in MEDIA[self.type].axes:
                raise ValueError(f"a {MEDIA[self.type].noun} has no duration; leave start_s and seconds out")
            if self.codes is not None:
                raise ValueError("start_s and seconds choose a part of a file, not of codes; leave them out")
        return self


_URL_SAFE = str.maketrans("-_", "+/")  # pydantic writes the URL-safe alphabet


def _tell_apart(part: object) -> str:
    """Which of the two classes a part is: `text` or `medium`."""
    if isinstance(part, Mapping):
        return "text" if part.get("type") == "text" else "medium"
    return "text" if isinstance(part, TextPart) else "medium"


AnyPart = Annotated[Annotated[TextPart, Tag("text")] | Annotated[MediaPart, Tag("medium")], Discriminator(_tell_apart)]


class Message(_Model):
    """What one role says. learn: False for an answer that is read and not learnt."""

    role: Literal["system", "user", "assistant"]
    learn: bool = True
    content: tuple[AnyPart, ...]

    @field_validator("content", mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        return (TextPart(text=value),) if isinstance(value, str) else value


class Conversation(_Model):
    """A whole row of a dataset: `parse_conversation` checks it, and it becomes a `Document`."""

    messages: tuple[Message, ...]

    def to_document(self) -> Document:
        """Raises ValueError for content that no document can hold, such as a lone surrogate in a text."""
        return Document(
            Turn(message.role, [_to_part(part) for part in message.content], message.learn) for message in self.messages
        )

    @classmethod
    def from_document(cls, document: Document) -> Conversation:
        return cls(
            messages=tuple(
                Message(
                    role=turn.role,  # type: ignore[arg-type]
                    content=tuple(_from_part(part) for part in turn.parts),
                    learn=turn.learn,
                )
                for turn in document.turns
            )
        )


def parse_conversation(messages: object) -> Conversation:
    """Validates messages, given as plain dicts or as the classes above, and checks that there is an answer to learn.

    Raises ValueError, in one line that names the entry and its value.
    """
    try:
        conversation = Conversation.model_validate({"messages": messages})
    except ValidationError as error:
        raise ValueError(describe_message_error(error)) from None
    if not conversation.messages:
        raise ValueError("there are no messages")
    answers = [message for message in conversation.messages if message.role == "assistant"]
    if not answers:
        raise ValueError("no message is by the assistant, so there is nothing to learn")
    answers = [message for message in answers if message.learn]
    if not answers:
        raise ValueError("every message of the assistant is masked, so there is nothing to learn")
    if not any(isinstance(part, MediaPart) or part.text for message in answers for part in message.content):
        raise ValueError("the assistant's messages are empty, so there is nothing to learn")
    return conversation


def describe_message_error(error: ValidationError) -> str:
    """The first complaint of pydantic, in one line: `messages.1.role 'tool': Input should be 'system', …`."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("text", "medium"))
    value = repr(first["input"])
    return " ".join(f"{where} {value[:80]}{'…' * (len(value) > 80)}: {first['msg']}".split()).replace(
        "Value error, ", ""
    )


def _to_part(part: TextPart | MediaPart) -> Part:
    if isinstance(part, TextPart):
        return Text(part.text)
    return MEDIA_PARTS[part.type](
        part.codes, part.path, part.data, part.grid, start_s=part.start_s, seconds=part.seconds
    )


def _from_part(part: Part) -> TextPart | MediaPart:
    if isinstance(part, Text):
        return TextPart(text=part.text)
    assert isinstance(part, Media)
    return MediaPart(
        type=part.modality,
        path=part.path,
        data=part.data,
        codes=None if part.codes is None else part.codes.tolist(),
        grid=part.grid,
        start_s=0.0 if part.codes is not None else part.start_s,
        seconds=None if part.codes is not None else part.seconds,
    )

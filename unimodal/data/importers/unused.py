"""What an importer would lose: unread columns that look like media, and answers that are marked as unwanted.

{"image_path": "apple.png", "text": "an apple"}     an error that says columns={image: image_path}
{"image": "apple.png", "url": "https://a.example/apple.jpg", "text": "an apple"}     the url is only a note
{"prompt": "draw", "completion": "no", "label": false}     KTO: an answer that was not wanted
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from unimodal.data.importers.columns import find_modality
from unimodal.data.importers.turns import MESSAGE_KEYS
from unimodal.data.media_folder import MediaFolder, find_base64
from unimodal.data.messages import Conversation, MediaPart
from unimodal.data.rows import Row
from unimodal.media.kind import detect_kind
from unimodal.media.registry import MEDIA

#: words in the names of columns that hold a medium
_NAMES = {
    "image": ("image", "img", "picture", "photo", "pixel"),
    "audio": ("audio", "wav", "speech", "sound"),
    "video": ("video", "clip", "film", "movie"),
}
_MESSAGE_COLUMNS = ("messages", "conversations", "conversation", "prompt", "completion")
_MESSAGE_KEYS = {"role", "content", "from", "value"}
_LONGEST_NAME = 1024  # characters of a path or a URL
_PREFERENCE = (
    "is of a preference dataset, not of supervised training; set objective.preference to learn from both answers, or, "
    "to learn the chosen ones, call their column completion or messages by columns, and name the rest in ignore"
)


class ReadRow(Mapping[str, object]):
    """A row that records which of its columns are read."""

    def __init__(self, columns: Row) -> None:
        self._columns = columns
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> object:
        self.read.add(name)
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    @property
    def unread(self) -> dict[str, object]:
        """The columns that nobody asked for, and what they hold."""
        return {name: value for name, value in self._columns.items() if name not in self.read}


def check_wanted(row: Row) -> None:
    """Raises ValueError for a row that marks unwanted answers: of DPO, of a reward model, of KTO with label false."""
    for column, value in row.items():
        if column.startswith(("chosen", "rejected")) and value not in (None, "", []):
            raise ValueError(f"the column {column!r} {_PREFERENCE}")
    # an answer beside it, since a class of a picture or a text may be called so, too
    answers = {"completion", "response", "messages", "conversations", "conversation"} & {
        name for name, value in row.items() if value is not None
    }
    for column in ("label", "kto_tag"):
        value = row.get(column)
        if answers and (value is False or value == 0 or (isinstance(value, str) and value.lower() == "false")):
            raise ValueError(
                f"the column {column!r} is {value!r}: the answer was not wanted (KTO); set objective.kto to learn from "
                "it, leave the row out, or, if it says something else, name it in ignore"
            )


def check_unused(row: ReadRow, conversation: Conversation, folder: MediaFolder) -> None:
    """Raises ValueError for an unread column, or an unread key of a message, that looks like a medium.

    The name of a file or URL beside a medium of its kind is only a note, unless the dataset's folder has that file.
    """
    parts = [part for message in conversation.messages for part in message.content if isinstance(part, MediaPart)]
    used = _Used(frozenset(part.type for part in parts), frozenset(os.path.realpath(p.path) for p in parts if p.path))
    for column, value in row.unread.items():
        modality = _find_medium(column, value, used, folder)
        if modality is not None:
            raise ValueError(
                f"the column {column!r} looks like a medium ({modality}: {_show(value)}) and would be lost; set "
                f"columns={{{modality}: {column}}} to use it, or ignore=[{column}] to leave it out"
            )
    for column in _MESSAGE_COLUMNS:
        messages = row.get(column)
        for message in messages if isinstance(messages, (list, tuple)) else ():
            for key in set(message) - _MESSAGE_KEYS if isinstance(message, Mapping) else ():
                modality = _find_medium(key, message[key], used, folder)
                if modality is not None:
                    raise ValueError(
                        f"{key!r} of a message looks like a medium ({modality}: {_show(message[key])}) and would be "
                        f"lost; write it as a part of the content, or into the column {MEDIA[modality].columns[0]}"
                    )


def list_unread(row: ReadRow) -> set[str]:
    """The columns that hold something and were not asked for, and such keys of messages: `messages.name`."""
    found = {column for column, value in row.unread.items() if _holds_something(value)}
    for column in row.read & set(_MESSAGE_COLUMNS):
        messages = row.get(column)
        for message in messages if isinstance(messages, (list, tuple)) else ():
            keys = set(message) - MESSAGE_KEYS if isinstance(message, Mapping) else set()
            found |= {f"{column}.{key}" for key in keys if _holds_something(message[key])}
    return found


def _holds_something(value: object) -> bool:
    return value not in (None, "", [], {})


def find_media_column(row: Row, folder: MediaFolder) -> tuple[str, str] | None:
    """(the first column that looks like a medium, that medium); None if no column does."""
    for column, value in row.items():
        modality = _find_medium(column, value, _Used(), folder)
        if modality is not None:
            return column, modality
    return None


@dataclass(frozen=True)
class _Used:
    """The media of a row that were read: their modalities and their files."""

    modalities: frozenset[str] = frozenset()
    paths: frozenset[str] = frozenset()


def _find_medium(column: str, value: object, used: _Used, folder: MediaFolder) -> str | None:
    """The medium that a value looks like; None for any other value, and for a note about a medium."""
    named = _find_by_name(column)
    if isinstance(value, (list, tuple)):
        found = (_find_medium(column, item, used, folder) for item in value[:3])
        return next((modality for modality in found if modality is not None), None)
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            value = value["bytes"]
        elif value.get("array") is not None and value.get("sampling_rate") is not None:
            return "audio"
        else:
            paths = (value.get(key) for key in ("path", "url", "file"))
            value = next((path for path in paths if path is not None), None)
    if isinstance(value, str) and value.startswith("data:"):
        declared = value[5:].partition("/")[0]
        return declared if declared in MEDIA else named
    encoded = find_base64(value) if isinstance(value, str) else None
    value = value if encoded is None else encoded
    if isinstance(value, (bytes, bytearray)):
        with suppress(ValueError):
            return detect_kind(bytes(value))
        return named
    if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_NAME:
        return None
    modality = find_modality(value)
    guess = modality or named
    if guess is None:
        return None
    file = folder.find_file(value)
    if guess in used.modalities:
        return guess if file is not None and os.path.realpath(file) not in used.paths else None
    return guess if modality is not None or file is not None else None


def _find_by_name(column: str) -> str | None:
    words = column.lower()
    return next((medium for medium, names in _NAMES.items() if any(name in words for name in names)), None)


def _show(value: object) -> str:
    shown = repr(value) if not isinstance(value, (bytes, bytearray)) else f"{len(value):,} bytes"
    return shown[:60] + "…" * (len(shown) > 60)

"""What the columns of several formats have in common: media lists, placeholders in texts, typed parts, names of roles.

    images: [a.png, b.png]   "<image>\\n<image> which is larger?"   →   Image(a), Image(b), Text("which is larger?")

Placeholders are taken in the order of the texts, from one list per modality. Their numbers have to match: a picture too
few or too many is an error that names both numbers. White space that touches a placeholder belongs to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from unimodal.data.media_folder import MediaFolder
from unimodal.data.messages import MediaPart, TextPart
from unimodal.data.rows import Row
from unimodal.media.registry import MEDIA, find_by_type, join_names

AnyPart = TextPart | MediaPart
MediaLists = dict[str, list[MediaPart]]  # modality → media in order

ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
}


def media_columns() -> dict[str, tuple[str, str]]:
    """Medium → the columns that may hold several of it, or one."""
    return {name: medium.columns for name, medium in MEDIA.items()}


def find_placeholders(text: str) -> list[str]:
    """The media whose placeholders `<image>` … a text holds, in order."""
    return _split_at_placeholders(text)[1::2]


def _split_at_placeholders(text: str) -> list[str]:
    """Text, medium, text, medium, …, text; white space that touches a placeholder is dropped."""
    return re.split(rf"\s*<({'|'.join(MEDIA)})>\s*", text)


def role_of(name: Any) -> str:
    """`human` → `user`, `gpt` → `assistant`. Raises ValueError for a role that no document has."""
    role = ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise ValueError(f"role {name!r} is unknown; use system, user (human) or assistant (gpt)")
    return role


def text_of(value: Any, what: str) -> str:
    """A text, or ValueError that says what should have been one."""
    if not isinstance(value, str):
        raise ValueError(f"{what} must be a text, this one is {type(value).__name__}")
    return value


def list_of(value: Any, what: str) -> list[Any]:
    """A list of objects, or ValueError that says what should have been one."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, Mapping) for item in value):
        raise ValueError(f"{what} must be a list of objects, this one is {type(value).__name__}")
    return list(value)


def refuse(row: Row, columns: Iterable[str], reason: str) -> None:
    """ValueError if one of these columns holds anything: it would be dropped in silence."""
    for column in columns:
        if row.get(column):
            raise ValueError(f"the column {column!r} {reason}; remove it, or the row, to use the rest")


def media_of(row: Row, folder: MediaFolder) -> MediaLists:
    """The media of all media columns, each a single medium or a list."""
    found: MediaLists = {}
    for modality, columns in media_columns().items():
        filled = [column for column in columns if row.get(column) not in (None, [], "")]
        if len(filled) > 1:
            raise ValueError(f"both {filled[0]!r} and {filled[1]!r} are given; use one of them")
        value = row[filled[0]] if filled else []
        values = value if isinstance(value, (list, tuple)) else [value]
        found[modality] = [folder.part(item, modality) for item in values]
    return found


def fill_placeholders(texts: Sequence[str], media: MediaLists, front: int | None = None) -> list[list[AnyPart]]:
    """The parts of each text, with a medium in place of each placeholder.

    With `front`, media of a modality that no text has a placeholder for go before text number `front`. Raises
    ValueError where the numbers of placeholders and media differ.
    """
    counts = dict.fromkeys(MEDIA, 0)
    for text in texts:
        for name in find_placeholders(text):
            counts[name] += 1
    leading: list[AnyPart] = []
    for modality, parts in media.items():
        if front is not None and parts and not counts[modality]:
            leading += parts
        elif counts[modality] != len(parts):
            raise ValueError(
                f"the texts hold {counts[modality]} of the placeholder <{modality}> but the row brings {len(parts)} of "
                f"{modality}; the numbers must match"
            )
    queues = {modality: iter(parts) for modality, parts in media.items()}
    filled = [list(_parts(text, queues)) for text in texts]
    if leading:
        assert front is not None
        filled[front] = leading + filled[front]
    return filled


def _parts(text: str, queues: Mapping[str, Iterator[MediaPart]]) -> Iterator[AnyPart]:
    pieces = _split_at_placeholders(text)
    for index, piece in enumerate(pieces):
        if index % 2:
            yield next(queues[piece])
        elif piece or len(pieces) == 1:
            yield TextPart(text=piece)


def typed_parts(content: Any, queues: Mapping[str, Iterator[MediaPart]], folder: MediaFolder) -> list[AnyPart]:
    """The parts of a `content` list; an `{"type": "image"}` without a file of its own takes the next of its queue.

    Raises ValueError for a type that is not known and for a queue that has run out (StopIteration is the caller's).
    """
    parts: list[AnyPart] = []
    for item in list_of(content, "a message's content"):
        given = {key: value for key, value in item.items() if value is not None}  # Arrow fills absent keys with None
        kind = given.pop("type", None)
        if kind == "text":
            parts.append(TextPart(text=text_of(given.get("text"), "the text of a part")))
            continue
        medium = find_by_type(kind)
        if medium is None:
            raise ValueError(f"part type {kind!r} is unknown; use {join_names(('text', *MEDIA))}")
        modality = medium.name
        if "codes" in given:
            parts.append(MediaPart(type=modality, codes=given["codes"]))
            continue
        inner = given.get(kind, given.get(modality))
        sources = {key: value for key, value in given.items() if key not in (kind, modality, "text")}
        if inner is not None:
            parts.append(folder.part(inner, modality))
        elif sources:
            parts.append(folder.part(sources, modality))
        else:
            parts.append(next(queues[modality]))
    return parts


def has_own_media(content: Any) -> bool:
    """True if a typed part of this content brings its file or codes itself."""
    return isinstance(content, (list, tuple)) and any(
        isinstance(item, Mapping)
        and find_by_type(item.get("type")) is not None
        and any(value is not None for key, value in item.items() if key not in ("type", "text"))
        for item in content
    )

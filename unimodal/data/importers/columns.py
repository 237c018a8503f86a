"""What the columns of several formats have in common: media lists, placeholders in texts, typed parts.

    images: [a.png, b.png]   "<image>\\n<image> which is larger?"   →   Image(a), Image(b), Text("which is larger?")

Placeholders are taken in the order of the texts, from one list per modality. Their numbers have to match: a picture too
few or too many is an error that names both numbers. White space that touches a placeholder belongs to it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from unimodal.data.media_folder import MediaFolder, is_picture_list
from unimodal.data.messages import MediaPart, TextPart
from unimodal.data.rows import Row
from unimodal.files import parse_json
from unimodal.media.registry import MEDIA, find_by_suffix, find_by_type, join_names

AnyPart = TextPart | MediaPart
MediaLists = dict[str, list[MediaPart]]  # modality → media in order

#: keys of a typed part that advise a processor how to read its file, and lose nothing when they are left out
_HINTS = {
    *("detail", "format", "media_type", "mime_type", "filename", "cache_control", "id"),
    *("fps", "sample_fps", "nframes", "min_frames", "max_frames"),
    *("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width"),
}
_UNSURE = (".ts",)  # suffixes that other files have more often: TypeScript
#: keys that choose the part of a file → whether they count from its beginning; ours, and Qwen's for films
_STARTS, _LENGTHS, _ENDS = ("start_s", "video_start"), ("seconds",), ("video_end",)


def list_media_columns() -> dict[str, tuple[str, str]]:
    """Medium → the columns that may hold several of it, or one."""
    return {name: medium.columns for name, medium in MEDIA.items()}


def find_modality(name: str) -> str | None:
    """The medium of a file or URL by its suffix; None for another kind of file."""
    if "\n" in name:
        return None
    with suppress(ValueError):
        name = urlsplit(name).path if "://" in name else name
    suffix = PurePosixPath(name).suffix.lower()
    medium = None if suffix in _UNSURE else find_by_suffix(suffix)
    return None if medium is None else medium.name


def name_files(row: Row) -> Row:
    """The row with the files that `file_name` names, as an imagefolder's metadata does, as columns of their media.

    `image_file_name` and the like name a medium themselves; a row that has a medium of the kind keeps its own.
    """
    made = dict(row)
    for modality, (many, one) in list_media_columns().items():
        for column in (f"{modality}_file_name", f"{modality}_file_names", "file_name", "file_names"):
            value = made.get(column)
            first = value[0] if isinstance(value, (list, tuple)) and value else value
            if not isinstance(first, str) or made.get(many) or made.get(one):
                continue
            if column.startswith(modality) or find_modality(first) == modality:
                made[many if isinstance(value, (list, tuple)) else one] = made.pop(column)
    return made


def find_placeholders(text: str) -> list[str]:
    """The media whose placeholders `<image>` … a text holds, in order."""
    return _split_at_placeholders(text)[1::2]


def _split_at_placeholders(text: str) -> list[str]:
    """Text, medium, text, medium, …, text; white space that touches a placeholder is dropped."""
    return re.split(rf"\s*<({'|'.join(MEDIA)})>\s*", text)


def read_text(value: object, what: str) -> str:
    """A text, or ValueError that says what should have been one."""
    if not isinstance(value, str):
        raise ValueError(f"{what} must be a text, this one is {type(value).__name__}")
    return value


def read_objects(value: object, what: str) -> list[Mapping[str, object]]:
    """A list of objects, which may be written as JSON; or ValueError that says what should have been one."""
    value = read_json_list(value, what)
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, Mapping) for item in value):
        raise ValueError(f"{what} must be a list of objects, this one is {type(value).__name__}")
    return list(value)


def read_json_list(value: object, what: str) -> object:
    """A value, or the list that a text beginning with `[` holds as JSON. ValueError for one that is broken."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return parse_json(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} is a text that is not JSON ({error.msg} at character {error.pos + 1})") from None


def refuse(row: Row, columns: Iterable[str], reason: str) -> None:
    """ValueError if one of these columns holds anything: it would be dropped in silence."""
    for column in columns:
        if row.get(column):
            raise ValueError(
                f"the column {column!r} {reason}; name it in ignore, or leave the row out, to use the rest"
            )


def read_media(row: Row, folder: MediaFolder) -> MediaLists:
    """The media of all media columns, each a single medium or a list.

    A list of pictures in the column `video` is one film by its frames, and so is each list in `videos`.
    """
    found: MediaLists = {}
    for modality, columns in list_media_columns().items():
        filled = [column for column in columns if row.get(column) not in (None, [], "")]
        if len(filled) > 1:
            raise ValueError(f"both {filled[0]!r} and {filled[1]!r} are given; use one of them")
        found[modality] = []
        for column in filled:
            value = row[column]
            if isinstance(value, str) and value.lstrip().startswith("["):
                value = read_json_list(value, f"the column {column!r}")
            if modality == "video" and is_picture_list(value):
                if column == columns[0]:
                    raise ValueError(f"{column!r} holds pictures; write the frames of each film as a list of their own")
                value = [value]
            values = value if isinstance(value, (list, tuple)) else [value]
            found[modality] = [folder.make_part(item, modality) for item in values]
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
    filled = [list(_fill_text(text, queues)) for text in texts]
    if leading:
        assert front is not None
        filled[front] = leading + filled[front]
    return filled


def _fill_text(text: str, queues: Mapping[str, Iterator[MediaPart]]) -> Iterator[AnyPart]:
    pieces = _split_at_placeholders(text)
    for index, piece in enumerate(pieces):
        if index % 2:
            yield next(queues[piece])
        elif piece or len(pieces) == 1:
            yield TextPart(text=piece)


class MediaQueues:
    """The media of a row as typed parts take them: the next one, or the one that a part's `index` names."""

    def __init__(self, media: MediaLists) -> None:
        self.media = media
        self.num_bare = dict.fromkeys(media, 0)  # parts that took the next one
        self._indexed: dict[str, set[int]] = {modality: set() for modality in media}

    def take(self, modality: str, index: object = None) -> MediaPart | None:
        """The next medium, None past the last one; or number `index`. ValueError for a number that there is not."""
        parts = self.media[modality]
        if index is None:
            number = self.num_bare[modality]
            self.num_bare[modality] += 1
            return parts[number] if number < len(parts) else None
        if not isinstance(index, int) or not 0 <= index < len(parts):
            raise ValueError(f"a part has index {index!r} but the row brings {len(parts)} of {modality}; count from 0")
        self._indexed[modality].add(index)
        return parts[index]

    def check(self) -> None:
        """ValueError for numbers of parts and media that differ."""
        for modality, parts in self.media.items():
            indexed, bare = self._indexed[modality], self.num_bare[modality]
            if indexed and bare:
                raise ValueError(
                    f"some parts of type {modality} have an index and some have none; give all or none one"
                )
            unused = sorted(set(range(len(parts))) - indexed)
            if indexed and unused:
                raise ValueError(f"no part has index {unused[0]} but the row brings {len(parts)} of {modality}")
            if not indexed and bare != len(parts):
                raise ValueError(
                    f"the messages hold {bare} parts of type {modality} but the row brings {len(parts)} of {modality}; "
                    "the numbers must match"
                )


def read_typed_parts(content: object, queues: MediaQueues, folder: MediaFolder) -> list[AnyPart]:
    """The parts of a `content` list; an `{"type": "image"}` without a file of its own takes one of its queue.

    Parts that find none are left to `queues.check`. Raises ValueError for a type or a key that is not known.
    """
    parts: list[AnyPart] = []
    for item in read_objects(content, "a message's content"):
        given = {key: value for key, value in item.items() if value is not None}  # Arrow fills absent keys with None
        kind = given.pop("type", None)
        if kind == "text":
            parts.append(TextPart(text=read_text(given.get("text"), "the text of a part")))
            continue
        medium = find_by_type(kind)
        if medium is None:
            raise ValueError(f"part type {kind!r} is unknown; use {join_names(('text', *MEDIA))}")
        part = _read_media_part(str(kind), medium.name, given, queues, folder)
        if part is not None:
            parts.append(part)
    return parts


def _read_media_part(
    kind: str, modality: str, given: dict[str, object], queues: MediaQueues, folder: MediaFolder
) -> MediaPart | None:
    """A part of a medium by what it holds beside its type; None where its queue has run out."""
    if given.get("text") == "":
        del given["text"]
    if "codes" in given:
        return MediaPart.model_validate({"type": modality, **given})
    start_s, seconds = _read_time(given)
    inner = given.pop(kind, given.pop(modality, None))
    index = given.pop("index", None)
    sources = {key: value for key, value in given.items() if key not in _HINTS}
    if inner is not None and sources:
        raise ValueError(f"a part of type {kind} has {join_names(sources)} beside its file, which would be lost")
    if inner is not None or sources:
        return folder.make_part(sources if inner is None else inner, modality, start_s, seconds)
    part = queues.take(modality, index)
    if part is not None and (start_s or seconds is not None):
        return MediaPart.model_validate(part.model_dump() | {"start_s": start_s, "seconds": seconds})
    return part


def _read_time(given: dict[str, object]) -> tuple[float, float | None]:
    """Takes what chooses a part of a file out of a part's keys: (start, seconds or None)."""

    def take(keys: tuple[str, ...]) -> float | None:
        found = [given.pop(key) for key in keys if key in given]
        if not found:
            return None
        if isinstance(found[0], bool) or not isinstance(found[0], (int, float)):
            raise ValueError(f"{keys[0]} of a part is {found[0]!r}; give seconds")
        return float(found[0])

    start_s, seconds, end_s = take(_STARTS) or 0.0, take(_LENGTHS), take(_ENDS)
    return start_s, seconds if end_s is None else end_s - start_s


def has_own_media(content: object) -> bool:
    """True if a typed part of this content brings its file or codes itself."""
    return isinstance(content, (list, tuple)) and any(
        isinstance(item, Mapping)
        and find_by_type(item.get("type")) is not None
        and any(value is not None for key, value in item.items() if key not in ("type", "text", "index"))
        for item in content
    )

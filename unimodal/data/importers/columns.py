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

MessagePart = TextPart | MediaPart
MediaLists = dict[str, list[MediaPart]]  # modality → media in order

#: keys of a typed part that only advise a processor how to read its file: nothing is lost without them
_HINTS = {
    *("detail", "format", "media_type", "mime_type", "filename", "cache_control", "id"),
    *("fps", "sample_fps", "nframes", "min_frames", "max_frames"),
    *("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width"),
}
#: keys of a part for its file, beside the names of media
_SOURCES = {"path", "url", "file", "bytes", "data", "base64", "codes", "source"}
_UNSURE = (".ts",)  # suffixes that more often mean another kind of file: TypeScript
#: keys for the start, the length and the end of the part of a file that is read; ours, then Qwen's for films
_STARTS, _LENGTHS, _ENDS = ("start_s", "video_start"), ("seconds",), ("video_end",)


def list_media_columns() -> dict[str, tuple[str, str]]:
    """Medium → its two columns: the one for several media, and the one for a single medium."""
    return {name: medium.columns for name, medium in MEDIA.items()}


def find_modality(name: str) -> str | None:
    """The medium that the suffix of a file or URL stands for; None for another kind of file."""
    if "\n" in name:
        return None
    with suppress(ValueError):
        name = urlsplit(name).path if "://" in name else name
    suffix = PurePosixPath(name).suffix.lower()
    medium = None if suffix in _UNSURE else find_by_suffix(suffix)
    return None if medium is None else medium.name


def name_files(row: Row) -> Row:
    """Moves the files that a row names under `file_name`, as an imagefolder's metadata does, into the columns of their
    media.

    `image_file_name` and the like name the medium too. A row that fills a medium's column already keeps it.
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
    """The media of the placeholders (`<image>`, …) in a text, in order."""
    return _split_at_placeholders(text)[1::2]


def _split_at_placeholders(text: str) -> list[str]:
    """Text, medium, text, medium, …, text; white space that touches a placeholder is dropped."""
    return re.split(rf"\s*<({'|'.join(MEDIA)})>\s*", text)


def read_text(value: object, what: str) -> str:
    """Returns a value that is a text. Raises ValueError, naming `what`, for any other."""
    if not isinstance(value, str):
        raise ValueError(f"{what} must be a text, this one is {type(value).__name__}")
    return value


def read_objects(value: object, what: str) -> list[Mapping[str, object]]:
    """A list of objects, which may be written as JSON. Raises ValueError, naming `what`, for anything else."""
    value = read_json_list(value, what)
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, Mapping) for item in value):
        raise ValueError(f"{what} must be a list of objects, this one is {type(value).__name__}")
    return list(value)


def read_json_list(value: object, what: str) -> object:
    """The list that a text beginning with `[` holds as JSON; any other value as it is. ValueError for broken JSON."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return parse_json(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} is a text that is not JSON ({error.msg} at character {error.pos + 1})") from None


def refuse(row: Row, columns: Iterable[str], reason: str) -> None:
    """Raises ValueError if one of these columns holds anything, which would be dropped in silence."""
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


def fill_placeholders(texts: Sequence[str], media: MediaLists, front: int | None = None) -> list[list[MessagePart]]:
    """Replaces each placeholder by the next medium of its kind, and returns the parts of each text.

    front: number of the text before which media go if no text has a placeholder of their modality. Raises ValueError if
    placeholders and media differ in number.
    """
    counts = dict.fromkeys(MEDIA, 0)
    for text in texts:
        for name in find_placeholders(text):
            counts[name] += 1
    leading: list[MessagePart] = []
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


def _fill_text(text: str, queues: Mapping[str, Iterator[MediaPart]]) -> Iterator[MessagePart]:
    pieces = _split_at_placeholders(text)
    for index, piece in enumerate(pieces):
        if index % 2:
            yield next(queues[piece])
        elif piece or len(pieces) == 1:
            yield TextPart(text=piece)


class MediaQueues:
    """Hands out the media of a row to typed parts: the next one, or the one that a part's `index` names."""

    def __init__(self, media: MediaLists) -> None:
        self.media = media
        self.num_bare = dict.fromkeys(media, 0)  # parts that took the next one
        self._indexed: dict[str, set[int]] = {modality: set() for modality in media}

    def take(self, modality: str, index: object = None) -> MediaPart | None:
        """Medium number `index`; without one the next, None past the last. Raises ValueError for an index out of
        range.
        """
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
        """Raises ValueError if parts and media differ in number."""
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


def read_typed_parts(content: object, queues: MediaQueues, folder: MediaFolder) -> list[MessagePart]:
    """Reads the parts of a `content` list; an `{"type": "image"}` without a file takes the next medium of its queue.

    A part whose queue is empty is left out, and `queues.check` reports it. Raises ValueError for an unknown type or
    key.
    """
    parts: list[MessagePart] = []
    for item in read_objects(content, "a message's content"):
        given = {key: value for key, value in item.items() if value is not None}  # Arrow fills absent keys with None
        kind = given.pop("type", None)
        if kind == "text":
            lost = [key for key, value in given.items() if value and (find_by_type(key) or key in _SOURCES)]
            if lost:
                raise ValueError(f"a part of type text has {lost[0]!r}, which would be lost; write a part of its own")
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
    """Reads a medium by the keys of its part, `type` aside; None if its queue is empty."""
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
    """Removes the keys that choose a part of a file, and returns (start, seconds or None)."""

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
    """Whether any typed part of this content brings its own file or codes."""
    return isinstance(content, (list, tuple)) and any(
        isinstance(item, Mapping)
        and find_by_type(item.get("type")) is not None
        and any(value is not None for key, value in item.items() if key not in ("type", "text", "index"))
        for item in content
    )

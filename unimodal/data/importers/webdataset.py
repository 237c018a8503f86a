"""WebDataset: tars whose members are grouped by key, read in place with plain tarfile.

    0001.jpg 0001.txt              a pair of a medium and a text
    0002.png 0002.json             the object's columns; its conversation, or a caption
    0003.wav 0003.json             "audios": ["0003.wav"] or ["wav"] names members; without it all media are taken

The key of a member is its name up to the first dot behind the last slash; members of a key stand next to each other.
Nothing is unpacked to disk. Members of kinds that are not read are counted in `ignored`.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from unimodal.data.importers.columns import media_columns
from unimodal.data.rows import Row, checked, file_sha256
from unimodal.files import describe_error, quote_path
from unimodal.media.registry import MEDIA, find_by_suffix

TEXT_KINDS = {"txt": "text", "text": "text", "caption": "text", "json": "json"}


def _kind_of(extension: str) -> str | None:
    """`text`, `json` or a medium, by what stands behind the last dot; None for a kind that is not read."""
    last = extension.rpartition(".")[2]
    medium = find_by_suffix(f".{last}")
    return TEXT_KINDS.get(last, None if medium is None else medium.name)


class Member(NamedTuple):
    extension: str  # lower case, behind the first dot
    name: str
    offset: int
    size: int


class TarRows:
    """The samples of one uncompressed tar, by their keys."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys: list[str] = []
        self.ignored: Counter[str] = Counter()  # extension → members of a kind that is not read
        self._members: list[list[Member]] = []
        self._problems: dict[int, str] = {}
        seen: dict[str, int] = {}  # key → its first row
        try:
            with tarfile.open(path, "r:") as tar:
                for info in tar:
                    self._add(info, seen)
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(
                f"{quote_path(path)} is not an uncompressed tar that can be read ({describe_error(error)}); "
                "unpack it or copy it again"
            ) from None

    def _add(self, info: tarfile.TarInfo, seen: dict[str, int]) -> None:
        if info.isdir():
            return
        folder, slash, base = info.name.rpartition("/")
        stem, _, extension = base.partition(".")
        key, extension = folder + slash + stem, extension.lower()
        if not stem:  # .DS_Store and the like
            self.ignored[base] += 1
            return
        if not self.keys or self.keys[-1] != key:
            if key in seen:  # neither place has the whole sample
                for row in (seen[key], len(self.keys)):
                    self._problems[row] = "the key stands in two places of the tar; write its members together"
            seen[key] = len(self.keys)
            self.keys.append(key)
            self._members.append([])
        row = len(self.keys) - 1
        if not info.isreg():
            self._problems[row] = f"{info.name} is a link or a device; store the file itself"
        elif _kind_of(extension) is None:
            self.ignored[extension] += 1
        else:
            self._members[row].append(Member(extension, info.name, info.offset_data, info.size))

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> Row:
        if index in self._problems:
            raise ValueError(self._problems[index])
        contents: dict[str, bytes] = {}
        with self.path.open("rb") as stream:
            for member in self._members[index]:
                if member.extension in contents:
                    raise ValueError(f"there are two members .{member.extension}; a key has one of each")
                stream.seek(member.offset)
                content = stream.read(member.size)
                if len(content) != member.size:
                    raise ValueError(f"{member.name} is cut short; copy the tar again")
                contents[member.extension] = content
        return self._row(index, contents)

    def _row(self, index: int, contents: dict[str, bytes]) -> Row:
        row: dict[str, Any] = {}
        media: dict[str, dict[str, bytes]] = {modality: {} for modality in MEDIA}
        names = {member.extension: member.name for member in self._members[index]}
        for extension, content in contents.items():
            kind = _kind_of(extension)
            if kind in media:
                media[kind][extension] = content
            elif kind == "text":
                if "text" in row:
                    raise ValueError("there are two texts; keep one of them")
                row["text"] = _decoded(content, names[extension])
            else:
                row |= _object(content, names[extension], row)
        for modality, (many, one) in media_columns().items():
            column = many if row.get(many) else one
            if row.get(column):
                wanted = row[column] if isinstance(row[column], list) else [row[column]]
                row[column] = [_member(name, media[modality], names) for name in wanted]
            elif media[modality]:
                row[many] = [{"bytes": content} for content in media[modality].values()]
        if not row:
            raise ValueError("there is no picture, sound, film, text or json among its members")
        return row

    def where(self, index: int) -> str:
        return f"{quote_path(self.path)} key {quote_path(self.keys[index])}"

    def sha256(self) -> str:
        return file_sha256([self.path])


def _decoded(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8 text") from None


def _object(content: bytes, name: str, row: dict[str, Any]) -> Row:
    try:
        found = checked(json.loads(_decoded(content, name)))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON ({describe_error(error)})") from None
    twice = sorted(set(found) & set(row))
    if twice:
        raise ValueError(f"{twice[0]} is given by {name} and by another member; keep one of them")
    return found


def _member(name: Any, media: dict[str, bytes], names: dict[str, str]) -> dict[str, bytes]:
    """The medium that the JSON calls by its member's name, the last part of it, or its extension."""
    for extension, content in media.items():
        full = names[extension]
        if name in (extension, full, full.rpartition("/")[2]):
            return {"bytes": content}
    raise ValueError(f"the json names {name!r} but the key has {', '.join(names.values())}")

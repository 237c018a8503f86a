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
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from unimodal.data.importers.columns import list_media_columns
from unimodal.data.rows import Row, check_row, hash_files
from unimodal.files import describe_error, parse_json, quote_path
from unimodal.media.registry import MEDIA, find_by_suffix

TEXT_KINDS = {"txt": "text", "text": "text", "caption": "text", "json": "json"}


def _find_kind(extension: str) -> str | None:
    """`text`, `json` or a medium, by the last part of an extension; None for a kind that is not read."""
    last = extension.rpartition(".")[2]
    medium = find_by_suffix(f".{last}")
    return TEXT_KINDS.get(last, None if medium is None else medium.name)


class Member(NamedTuple):
    """A member of a tar."""

    key: str
    extension: str  # lower case, behind the first dot
    name: str


class TarRows:
    """The samples of one tar, by their keys. Memory: 16 bytes a sample once it is open.

    name: what messages call the file, if `path` is only its unpacked content.
    """

    def __init__(self, path: Path, name: Path | None = None) -> None:
        self.path, self.name = path, quote_path(name or path)
        self.ignored: Counter[str] = Counter()  # extension → members of a kind that is not read
        self._spans = array("q")  # of each sample: where its first header begins, where its last member ends
        self._problems: dict[int, str] = {}
        first_rows: dict[str, int] = {}  # key → its first row
        last = None
        try:
            with tarfile.open(path, "r:") as tar:
                while (info := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                    member = _read_member(info)
                    if member is not None:
                        self._add(info, member, last, first_rows)
                        last = member.key
                    elif not info.isdir():  # .DS_Store and the like
                        self.ignored[info.name.rpartition("/")[2]] += 1
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(
                f"{self.name} is not a tar that can be read ({describe_error(error)}); copy it again, or name it "
                ".tar.gz if it is compressed"
            ) from None

    def _add(self, info: tarfile.TarInfo, member: Member, last: str | None, first_rows: dict[str, int]) -> None:
        """Records one member; `last` is the key of the member before it."""
        end = info.offset_data + info.size
        if member.key == last:
            self._spans[-1] = end
        else:
            row = len(self)
            if member.key in first_rows:  # neither place has the whole sample
                for place in (first_rows[member.key], row):
                    self._problems[place] = "the key stands in two places of the tar; write its members together"
            first_rows[member.key] = row
            self._spans.extend((info.offset, end))
        if not info.isreg():
            self._problems[len(self) - 1] = f"{info.name} is a link or a device; store the file itself"
        elif _find_kind(member.extension) is None:
            self.ignored[member.extension] += 1

    def __len__(self) -> int:
        return len(self._spans) // 2

    def __getitem__(self, index: int) -> Row:
        if index in self._problems:
            raise ValueError(self._problems[index])
        contents: dict[str, bytes] = {}
        names: dict[str, str] = {}
        for member, content in self._read_members(index):
            if _find_kind(member.extension) is None:
                continue
            if member.extension in contents:
                raise ValueError(f"there are two members .{member.extension}; a key has one of each")
            contents[member.extension], names[member.extension] = content, member.name
        return self._make_row(contents, names)

    def _read_members(self, index: int) -> Iterator[tuple[Member, bytes]]:
        """The members of a sample and their content. Raises ValueError if the tar was changed after it was opened."""
        begin, end = self._spans[2 * index : 2 * index + 2]
        try:
            with self.path.open("rb") as stream:
                stream.seek(begin)
                with tarfile.open(fileobj=stream, mode="r:") as tar:
                    while (info := tar.next()) is not None and info.offset < end:
                        member = _read_member(info)
                        file = tar.extractfile(info) if info.isreg() else None
                        if member is not None:
                            yield member, b"" if file is None else file.read()
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"the tar was changed or is cut short ({describe_error(error)}); copy it again") from None

    def _make_row(self, contents: Mapping[str, bytes], names: Mapping[str, str]) -> Row:
        row: dict[str, object] = {}
        media: dict[str, dict[str, bytes]] = {modality: {} for modality in MEDIA}
        for extension, content in contents.items():
            kind = _find_kind(extension)
            if kind in media:
                media[kind][extension] = content
            elif kind == "text":
                if "text" in row:
                    raise ValueError("there are two texts; keep one of them")
                row["text"] = _decode_text(content, names[extension])
            else:
                row |= _parse_object(content, names[extension], row)
        for modality, (many, one) in list_media_columns().items():
            column = many if row.get(many) else one
            given = row.get(column)
            if given:
                wanted = given if isinstance(given, list) else [given]
                row[column] = [_find_member(name, media[modality], names) for name in wanted]
            elif media[modality]:
                row[many] = [{"bytes": content} for content in media[modality].values()]
        if not row:
            raise ValueError("there is no picture, sound, film, text or json among its members")
        return row

    def describe_place(self, index: int) -> str:
        key = next(member.key for member, _ in self._read_members(index))
        return f"{self.name} key {quote_path(key)}"

    def compute_sha256(self) -> str:
        return hash_files([self.path])


def _read_member(info: tarfile.TarInfo) -> Member | None:
    """The member of a header; None for a folder, and for a file without a stem, which belongs to no sample."""
    folder, slash, base = info.name.rpartition("/")
    stem, _, extension = base.partition(".")
    return None if info.isdir() or not stem else Member(folder + slash + stem, extension.lower(), info.name)


def _decode_text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8 text") from None


def _parse_object(content: bytes, name: str, row: dict[str, object]) -> Row:
    try:
        found = check_row(parse_json(_decode_text(content, name)))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON ({describe_error(error)})") from None
    twice = sorted(set(found) & set(row))
    if twice:
        raise ValueError(f"{twice[0]} is given by {name} and by another member; keep one of them")
    return found


def _find_member(name: object, media: Mapping[str, bytes], names: Mapping[str, str]) -> dict[str, bytes]:
    """The medium that the JSON names, by the path, file name or extension of its member."""
    for extension, content in media.items():
        full = names[extension]
        if name in (extension, full, full.rpartition("/")[2]):
            return {"bytes": content}
    raise ValueError(f"the json names {name!r} but the key has {', '.join(names.values())}")

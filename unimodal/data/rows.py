"""Files → numbered raw rows, each with a name for messages: what every reader promises, and those of JSON and JSONL.

A reader finds once where its rows begin, and parses a row each time it is asked for, so that a dataset costs little
memory. A bad row spoils no other: `rows[i]` raises ValueError, `rows.describe_place(i)` names its file and line. Other
readers are in `csv_rows.py`, `arrow_rows.py` (Parquet and Hugging Face), `folder_rows.py` and `importers/webdataset.py`
(tars).
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from unimodal.files import parse_json, quote_path

Row = Mapping[str, object]
#: keys that hold the rows of a file whose JSON is one object
WRAPPERS = ("data", "rows", "train", "examples", "samples", "items", "instances", "annotations")


class Rows(Protocol):
    """Raw rows of one or several files."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...  # ValueError for a row that cannot be read

    def describe_place(self, index: int) -> str: ...  # `data.jsonl line 7`

    def compute_sha256(self) -> str: ...  # of what decides the rows


class JsonlRows:
    """One JSON object a line; blank lines count as lines and are no rows. Memory: 16 bytes a row.

    name: what messages call the file, if `path` is only its unpacked content.
    """

    def __init__(self, path: Path, name: Path | None = None) -> None:
        self.path, self.name = path, quote_path(name or path)
        self._starts, self._lines = array("q"), array("q")
        digest = hashlib.sha256()
        start = 0
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                digest.update(line)
                if line.strip():
                    self._starts.append(start)
                    self._lines.append(number)
                start += len(line)
        self._sha256 = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Row:
        with self.path.open("rb") as stream:  # opened anew: a forked reader would share the place of an open file
            stream.seek(self._starts[index])
            line = stream.readline()
        try:
            return check_row(parse_json(line.decode("utf-8-sig")))
        except UnicodeDecodeError as error:
            raise ValueError(f"the line is not UTF-8 ({error.reason} at byte {error.start})") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"the line is not JSON ({error.msg} at character {error.pos + 1})") from None
        except RecursionError:
            raise ValueError("the line is nested too deeply") from None

    def describe_place(self, index: int) -> str:
        return f"{self.name} line {self._lines[index]}"

    def compute_sha256(self) -> str:
        return self._sha256


class JsonRows:
    """The objects of a JSON file: a list of them, one after another, or a list under a key such as `data` or `rows`.

    Memory: 24 bytes a row once it is open; opening takes the whole text.
    """

    _BLANK = re.compile(r"[ \t\r\n]*")
    _HEAD = 1 << 16

    @classmethod
    def can_read(cls, path: Path) -> bool:
        """False for a `.json` file that holds one row a line, as many do."""
        with path.open("rb") as stream:
            start = stream.read(cls._HEAD).decode("utf-8-sig", errors="replace").lstrip()
        first, end, others = start.partition("\n")
        if not first.startswith("{"):
            return True
        if not end and len(start) >= cls._HEAD:  # one long line: its beginning says it
            return re.match(rf'\{{\s*"({"|".join(WRAPPERS)})"\s*:\s*\[', first) is not None
        try:
            found = json.loads(first)
        except (json.JSONDecodeError, RecursionError):
            return True  # it goes on in the next line
        return not others.strip() and any(_is_wrapper(key, value) for key, value in found.items())

    def __init__(self, path: Path, name: Path | None = None) -> None:
        self.path, self.name = path, quote_path(name or path)
        content = path.read_bytes()
        self._sha256 = hashlib.sha256(content).hexdigest()
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.name} is not UTF-8 ({error.reason} at byte {error.start}); save it so") from None
        self._spans = array("q")  # of each row: its first byte, the byte behind it, its line
        byte, counted, line = len(content) - len(text.encode()), 0, 1  # a byte order mark comes before the text
        try:
            for at, end in self._find_rows(text):
                byte += len(text[counted:at].encode())
                line += text.count("\n", counted, at)
                counted = at
                self._spans.extend((byte, byte + len(text[at:end].encode()), line))
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{self.name} is not JSON: {error}") from None

    def _find_rows(self, text: str) -> Iterator[tuple[int, int]]:
        """Where each row begins and ends, in characters."""
        decode = json.JSONDecoder().raw_decode
        at = self._skip(text, 0)
        if text[at : at + 1] == "[":
            yield from self._find_items(text, at)
            return
        if text[at : at + 1] != "{":
            raise ValueError(f"{self.name} holds no list of rows; a row a line is a .jsonl file")
        _, end = decode(text, at)
        if self._skip(text, end) == len(text):
            lists = [place for key, place, value in self._find_members(text, at) if _is_wrapper(key, value)]
            if len(lists) > 1:
                raise ValueError(f"{self.name} holds several lists of rows; keep the one to learn from in the file")
            if lists:
                yield from self._find_items(text, lists[0])
                return
        while at < len(text):
            _, end = decode(text, at)
            yield at, end
            at = self._skip(text, end)

    def _find_items(self, text: str, at: int) -> Iterator[tuple[int, int]]:
        """Where each item of the list that begins at `at` begins and ends."""
        decode = json.JSONDecoder().raw_decode
        at = self._skip(text, at + 1)
        if text[at : at + 1] == "]":
            return
        while True:
            _, end = decode(text, at)
            yield at, end
            at = self._skip(text, end)
            if text[at : at + 1] == "]":
                return
            if text[at : at + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
            at = self._skip(text, at + 1)

    def _find_members(self, text: str, at: int) -> Iterator[tuple[str, int, object]]:
        """(key, where its value begins, the value) for each member of the object that begins at `at`."""
        decode = json.JSONDecoder().raw_decode
        at = self._skip(text, at + 1)
        while text[at : at + 1] not in ("}", ""):
            key, end = decode(text, at)
            at = self._skip(text, self._skip(text, end) + 1)  # the colon
            value, end = decode(text, at)
            yield key, at, value
            at = self._skip(text, end)
            at = self._skip(text, at + 1) if text[at : at + 1] == "," else at

    def _skip(self, text: str, at: int) -> int:
        """The place of the next character that is not blank."""
        found = self._BLANK.match(text, at)
        assert found is not None
        return found.end()

    def __len__(self) -> int:
        return len(self._spans) // 3

    def __getitem__(self, index: int) -> Row:
        begin, end = self._spans[3 * index : 3 * index + 2]
        with self.path.open("rb") as stream:
            stream.seek(begin)
            return check_row(parse_json(stream.read(end - begin)))

    def describe_place(self, index: int) -> str:
        return f"{self.name} row {index + 1} (line {self._spans[3 * index + 2]})"

    def compute_sha256(self) -> str:
        return self._sha256


def _is_wrapper(key: str, value: object) -> bool:
    """Whether a key of an object holds its rows."""
    return key in WRAPPERS and isinstance(value, list) and all(isinstance(item, dict) for item in value)


class JoinedRows:
    """The rows of several files, one after the other."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = parts
        self._ends: list[int] = []
        for part in parts:
            self._ends.append(len(part) + (self._ends[-1] if self._ends else 0))

    def _locate(self, index: int) -> tuple[Rows, int]:
        number = bisect_right(self._ends, index)
        return self.parts[number], index - (self._ends[number - 1] if number else 0)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Row:
        part, row = self._locate(index)
        return part[row]

    def describe_place(self, index: int) -> str:
        part, row = self._locate(index)
        return part.describe_place(row)

    def compute_sha256(self) -> str:
        return hashlib.sha256("".join(part.compute_sha256() for part in self.parts).encode()).hexdigest()


def check_row(value: object) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"a row must be an object with columns, this one is {type(value).__name__}")
    return value


def hash_files(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()

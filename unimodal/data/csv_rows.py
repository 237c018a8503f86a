"""CSV and TSV files as rows: the first line names the columns, every value is a text, an empty one is None."""

from __future__ import annotations

import csv
import hashlib
import io
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from unimodal.data.rows import Row
from unimodal.files import quote_path

_LONGEST_VALUE = 1 << 30  # characters; the module's own limit is too small for base64


class CsvRows:
    """One record a row; a record may have several lines between quotes. Memory: 24 bytes a row.

    name: what messages call the file, if `path` is only its unpacked content. Raises ValueError for a first line that
    does not name the columns, each once.
    """

    def __init__(self, path: Path, name: Path | None = None) -> None:
        self.path, self.name = path, quote_path(name or path)
        self._spans = array("q")  # of each row: its first byte, the byte behind it, its first line
        with path.open("rb") as stream:
            lines = _Lines(stream)
            self._delimiter = lines.find_delimiter()
            with _allow_long_values():
                records = csv.reader(lines, delimiter=self._delimiter)
                try:
                    self.columns = next(records, [])
                    begin, line = lines.end, lines.number + 1
                    for record in records:
                        if record:  # else an empty line
                            self._spans.extend((begin, lines.end, line))
                        begin, line = lines.end, lines.number + 1
                except csv.Error as error:
                    raise ValueError(f"{self.name} line {lines.number} is no CSV ({error}); mend it") from None
        self._sha256 = lines.digest.hexdigest()
        twice = [column for column, count in Counter(self.columns).items() if count > 1]
        if not self.columns or twice:
            problem = f"names the column {twice[0]!r} twice" if twice else "is empty"
            raise ValueError(f"{self.name}: the first line {problem}; it has to name the columns")

    def __len__(self) -> int:
        return len(self._spans) // 3

    def __getitem__(self, index: int) -> Row:
        begin, end = self._spans[3 * index : 3 * index + 2]
        with self.path.open("rb") as stream:
            stream.seek(begin)
            content = stream.read(end - begin)
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"the row is not UTF-8 ({error.reason} at byte {error.start})") from None
        with _allow_long_values():
            [values] = csv.reader(io.StringIO(text, newline=""), delimiter=self._delimiter)
        if len(values) != len(self.columns):
            raise ValueError(
                f"the row has {len(values)} values for {len(self.columns)} columns; put values with "
                f"{self._delimiter!r} in quotes"
            )
        return {column: value or None for column, value in zip(self.columns, values, strict=True)}

    def describe_place(self, index: int) -> str:
        return f"{self.name} line {self._spans[3 * index + 2]}"

    def compute_sha256(self) -> str:
        return self._sha256


class _Lines:
    """The lines of a file as texts; `end` is the byte behind the last one that was read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.end = self.number = 0
        self.digest = hashlib.sha256()

    def find_delimiter(self) -> str:
        """What separates the names of the first line: a comma, a semicolon or a tabulator."""
        head = self._stream.readline().decode("utf-8-sig", "replace")
        self._stream.seek(0)
        return max(",;\t", key=head.count)

    def __iter__(self) -> Iterator[str]:
        for content in self._stream:
            self.digest.update(content)
            self.end += len(content)
            self.number += 1
            yield content.decode("utf-8-sig" if self.number == 1 else "utf-8", "replace")


@contextmanager
def _allow_long_values() -> Iterator[None]:
    """Lifts the csv module's limit on the length of a value, which holds for the whole process, and sets it back."""
    before = csv.field_size_limit(_LONGEST_VALUE)
    try:
        yield
    finally:
        csv.field_size_limit(before)

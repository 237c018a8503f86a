"""Files → numbered raw rows, each with a name for messages: JSON, JSONL, Parquet and Arrow, one reader each.

A reader finds where its rows begin once and parses a row when it is asked for, so that a dataset costs little memory
and a bad row is one row's error: `rows[i]` raises ValueError, `rows.where(i)` says where it stands. Tars are read by
`importers/webdataset.py`.
"""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from unimodal.data.json_text import parse_json
from unimodal.files import describe_error, quote_path

Row = Mapping[str, object]
NEEDS_DATASETS = "needs the package datasets; install it with pip install 'unimodal[train]'"


class Rows(Protocol):
    """Raw rows of one or several files."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...  # ValueError for a row that cannot be read

    def where(self, index: int) -> str: ...  # `data.jsonl line 7`

    def sha256(self) -> str: ...  # of what decides the rows


class JsonlRows:
    """One JSON object a line; blank lines count as lines and are no rows. Memory: 16 bytes a row."""

    def __init__(self, path: Path) -> None:
        self.path = path
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

    def where(self, index: int) -> str:
        return f"{quote_path(self.path)} line {self._lines[index]}"

    def sha256(self) -> str:
        return self._sha256


class JsonRows:
    """A JSON list of objects, or an object that begins with such a list as `data`. Memory: 24 bytes a row once it is
    open; opening takes the whole text."""

    _BLANK = re.compile(r"[ \t\r\n]*")
    _WRAPPED = re.compile(r'\{\s*"data"\s*:\s*(?=\[)')

    @classmethod
    def fits(cls, path: Path) -> bool:
        """False for a `.json` file that really has a row a line, as many do."""
        with path.open("rb") as stream:
            start = stream.read(1 << 16).decode("utf-8-sig", errors="replace").lstrip()
        return not start.startswith("{") or cls._WRAPPED.match(start) is not None

    def __init__(self, path: Path) -> None:
        self.path = path
        content = path.read_bytes()
        self._sha256 = hashlib.sha256(content).hexdigest()
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{quote_path(path)} is not UTF-8 ({error.reason} at byte {error.start}); save it so"
            ) from None
        self._spans = array("q")  # of each row: its first byte, the byte behind it, its line
        byte, counted, line = len(content) - len(text.encode()), 0, 1  # a byte order mark comes before the text
        try:
            for at, end in self._find_rows(text):
                byte += len(text[counted:at].encode())
                line += text.count("\n", counted, at)
                counted = at
                self._spans.extend((byte, byte + len(text[at:end].encode()), line))
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{quote_path(path)} is not JSON: {error}") from None

    def _find_rows(self, text: str) -> Iterator[tuple[int, int]]:
        """Where each row begins and ends, in characters."""
        decoder = json.JSONDecoder()

        def skip(at: int) -> int:
            found = self._BLANK.match(text, at)
            assert found is not None
            return found.end()

        at = skip(0)
        if found := self._WRAPPED.match(text, at):
            at = found.end()
        if text[at : at + 1] != "[":
            raise ValueError(f"{quote_path(self.path)} holds no list of rows; a row a line is a .jsonl file")
        at = skip(at + 1)
        if text[at : at + 1] == "]":
            return
        while True:
            _, end = decoder.raw_decode(text, at)
            yield at, end
            at = skip(end)
            if text[at : at + 1] == "]":
                return
            if text[at : at + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
            at = skip(at + 1)

    def __len__(self) -> int:
        return len(self._spans) // 3

    def __getitem__(self, index: int) -> Row:
        begin, end = self._spans[3 * index : 3 * index + 2]
        with self.path.open("rb") as stream:
            stream.seek(begin)
            return check_row(parse_json(stream.read(end - begin)))

    def where(self, index: int) -> str:
        return f"{quote_path(self.path)} row {index + 1} (line {self._spans[3 * index + 2]})"

    def sha256(self) -> str:
        return self._sha256


class ArrowRows:
    """A Hugging Face dataset; Image, Audio and Video columns stay undecoded: dicts of bytes and path."""

    def __init__(self, dataset: Any, name: str, sha256: Callable[[], str] | None = None) -> None:
        import datasets

        for column, feature in dataset.features.items():
            plain = _undecoded(feature, datasets)
            if plain is not feature:
                dataset = dataset.cast_column(column, plain)
        self.dataset, self.name = dataset, name
        #: column → modality, of columns whose type says what they hold
        self.media_columns = {
            column: modality
            for column, feature in dataset.features.items()
            if (modality := _modality(feature, datasets)) is not None
        }
        self._sha256 = sha256 or (lambda: hashlib.sha256(str(dataset._fingerprint).encode()).hexdigest())

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Row:
        return self.dataset[index]

    def where(self, index: int) -> str:
        return f"{self.name} row {index + 1}"

    def sha256(self) -> str:
        return self._sha256()


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

    def where(self, index: int) -> str:
        part, row = self._locate(index)
        return part.where(row)

    def sha256(self) -> str:
        return hashlib.sha256("".join(part.sha256() for part in self.parts).encode()).hexdigest()


def parquet_rows(path: Path) -> ArrowRows:
    """Through `datasets`, which keeps a memory-mapped copy in its cache. ValueError without that package."""
    datasets = import_datasets(f"reading {quote_path(path)}")
    try:
        dataset = datasets.Dataset.from_parquet(str(path))
    except Exception as error:  # the builders wrap errors of pyarrow in their own
        raise ValueError(f"{quote_path(path)} is not a usable Parquet file ({describe_error(error)})") from None
    return ArrowRows(dataset, quote_path(path), lambda: hash_files([path]))


def arrow_rows(path: Path, split: str) -> ArrowRows:
    """A folder that `save_to_disk` wrote, one dataset or a dict of splits. ValueError for anything else."""
    datasets = import_datasets(f"reading {quote_path(path)}")
    try:
        dataset = datasets.load_from_disk(str(path))
    except Exception as error:
        raise ValueError(f"{quote_path(path)} is not a saved dataset ({describe_error(error)})") from None
    return ArrowRows(
        _one_split(dataset, split, path), quote_path(path), lambda: hash_files(sorted(path.rglob("*.arrow")))
    )


def hub_rows(name: str, split: str) -> ArrowRows:
    """A dataset of the hub, or a folder that `datasets` has a loader for (`imagefolder`, `audiofolder`)."""
    datasets = import_datasets(f"reading {name}")
    try:
        dataset = datasets.load_dataset(name, split=split)
    except Exception as error:  # network, repository, builder: many unrelated classes
        raise ValueError(
            f"the dataset {name!r} is no file here and cannot be loaded: {describe_error(error)}"
        ) from None
    return ArrowRows(dataset, name)


def import_datasets(what: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise ValueError(f"{what} {NEEDS_DATASETS}") from None
    datasets.disable_progress_bars()
    return datasets


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


def _one_split(dataset: Any, split: str, path: Path) -> Any:
    if not isinstance(dataset, dict):
        return dataset
    if split not in dataset:
        raise ValueError(f"{quote_path(path)} has no split {split!r}; it has {', '.join(dataset)}: set split")
    return dataset[split]


def _media_types(datasets: Any) -> Iterator[tuple[type, str]]:
    for name in ("Image", "Audio", "Video"):
        if hasattr(datasets, name):
            yield getattr(datasets, name), name.lower()


def _undecoded(feature: Any, datasets: Any) -> Any:
    for kind, _ in _media_types(datasets):
        if isinstance(feature, kind):
            return kind(decode=False)
    for sequence in (getattr(datasets, name) for name in ("List", "Sequence", "LargeList") if hasattr(datasets, name)):
        if isinstance(sequence, type) and isinstance(feature, sequence):
            inner = _undecoded(feature.feature, datasets)  # type: ignore[attr-defined]
            return feature if inner is feature.feature else sequence(inner)  # type: ignore[attr-defined]
    if isinstance(feature, dict):
        inner = {name: _undecoded(part, datasets) for name, part in feature.items()}
        return feature if all(inner[name] is feature[name] for name in feature) else inner
    return feature


def _modality(feature: Any, datasets: Any) -> str | None:
    inner = getattr(feature, "feature", feature)
    return next((modality for kind, modality in _media_types(datasets) if isinstance(inner, kind)), None)

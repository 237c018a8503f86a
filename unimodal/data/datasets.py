"""A dataset file of any known format → a sequence of `Document`s, with every bad row named.

    documents = open_dataset(DatasetConfig(path="data/pets.jsonl", on_bad_row="skip"))
    documents[0]                  # Document, media by path or bytes
    documents.bad_rows            # [BadRow(where="data/pets.jsonl line 7", reason="2 <image> placeholders but …")]

Opening reads every row once, so that the length is known and bad rows are found before the training starts, not in its
third hour. It checks a row's columns, roles and placeholders, and that its media files exist; media are decoded only by
whoever encodes them. A row is parsed again each time it is asked for; only its place is kept.

A row is never dropped in silence: `on_bad_row="fail"` raises at the first, `"skip"` counts and lists them.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self, overload

from pydantic import Field, field_validator

from unimodal.config import MAY_CHANGE, Config
from unimodal.data.arrow_rows import ArrowRows
from unimodal.data.find_rows import DEFAULT_SPLIT, find_rows
from unimodal.data.folder_rows import FolderRows
from unimodal.data.importers import IMPORTERS, PairsConfig, detect_format, import_row
from unimodal.data.importers.columns import list_media_columns, name_files
from unimodal.data.importers.pairs import LABEL_COLUMN
from unimodal.data.importers.preferences import complete_question, import_pair, import_question, split_label, split_pair
from unimodal.data.importers.webdataset import TarRows
from unimodal.data.media_folder import MediaFolder
from unimodal.data.messages import Conversation
from unimodal.data.rows import JoinedRows, Row, Rows
from unimodal.files import quote_path
from unimodal.sequence.document import Document, Text

if TYPE_CHECKING:
    from unimodal.objectives.objective import RowKind

FORMATS = ("auto", *IMPORTERS, "huggingface", "webdataset")
DETECT_ROWS = 100


class DatasetConfig(Config):
    """One dataset of a mixture."""

    #: a file, a folder of files of one kind, a pattern such as data/part-*.tar; with format huggingface a hub id
    path: Annotated[str, MAY_CHANGE]
    format: str = "auto"
    weight: float = Field(default=1.0, ge=0)
    on_bad_row: Annotated[Literal["skip", "fail"], MAY_CHANGE] = "fail"
    media_root: Annotated[Path | None, MAY_CHANGE] = None  # where the rows' paths start; None: the folder of the file
    limit: int | None = Field(default=None, ge=1)  # documents at most
    columns: dict[str, str] = {}  # our name of a column → the dataset's, e.g. {messages: dialog}
    ignore: tuple[str, ...] = ()  # columns of the dataset that are left out on purpose
    pairs: PairsConfig = PairsConfig()  # how a medium and its text become a question and an answer
    split: str = DEFAULT_SPLIT  # of data that has several: on the hub, saved, or in files or folders named after them

    @field_validator("format")
    @classmethod
    def _check_format(cls, value: str) -> str:
        if value not in FORMATS:
            raise ValueError(f"format {value!r} is unknown; use {', '.join(FORMATS)}")
        return value


@dataclass(frozen=True)
class BadRow:
    """A row that could not be used: where it stands and why."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class ImportedDataset(Sequence[Document]):
    """The usable rows of a dataset as documents; `open_dataset` makes one.

    kind: what the rows hold. Of pairs the documents are those of the chosen answers, and of `show_rejected` the others;
    `is_good` tells what a row with a label says.
    """

    def __init__(self, cfg: DatasetConfig, rows: Rows, media_root: Path | None, kind: RowKind = "answers") -> None:
        self.cfg, self.rows, self.kind = cfg, rows, kind
        self._shows_rejected = False
        self.folder = MediaFolder(cfg.media_root or media_root)
        self._renamed = _name_typed_columns(rows) | cfg.columns
        self.format = self._find_format(self._read_first_rows())
        self.bad_rows: list[BadRow] = []
        self.unread: set[str] = set()  # columns of usable rows that hold something and are not used
        self._good = array("q")  # rows that can be used
        self._stamps = array("Q")  # of the media files that each of them names
        for index in range(len(rows)):
            if len(self._good) == cfg.limit:
                break
            try:
                stamp = _stamp_media(self._import_sides(index, self.unread))
                self._good.append(index)
                self._stamps.append(stamp)
            except ValueError as error:
                bad = BadRow(rows.describe_place(index), str(error))
                if cfg.on_bad_row == "fail":
                    raise ValueError(f"{bad}; mend it, or set on_bad_row to skip") from None
                self.bad_rows.append(bad)
        if not self._good:
            first = f"; the first of {len(self.bad_rows)} bad rows is {self.bad_rows[0]}" if self.bad_rows else ""
            raise ValueError(f"{quote_path(cfg.path)} has no usable row{first}")

    @property
    def num_bad(self) -> int:
        return len(self.bad_rows)

    @property
    def ignored(self) -> Counter[str]:
        """Files of kinds that are not read, counted by extension: members of tars and files of media folders."""
        parts = self.rows.parts if isinstance(self.rows, JoinedRows) else [self.rows]
        return sum((part.ignored for part in parts if isinstance(part, (TarRows, FolderRows))), Counter())

    def __len__(self) -> int:
        return len(self._good)

    @overload
    def __getitem__(self, index: int) -> Document: ...

    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...

    def __getitem__(self, index: int | slice) -> Document | list[Document]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return self._import(self._good[index])

    def __iter__(self) -> Iterator[Document]:
        return (self._import(row) for row in self._good)

    def describe_place(self, index: int) -> str:
        """The place of document `index`: its file, with the line, row or key."""
        return self.rows.describe_place(self._good[index])

    def compute_fingerprint(self) -> str:
        """A hash of the rows' files and of each setting that decides the documents; media files do not count."""
        settings = self.cfg.model_dump(mode="json", exclude={"path", "weight"})
        record = [self.rows.compute_sha256(), self.format, settings, list(self._good[-1:]), self.num_bad]
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()

    def fingerprint_media(self, numbers: range) -> str:
        """A hash of the media files that these documents name: their sizes and times of last change when the dataset
        was opened. "" if they name none.
        """
        stamps = self._stamps[numbers.start : numbers.stop]
        return hashlib.sha256(stamps.tobytes()).hexdigest() if any(stamps) else ""

    def _take_supervised(self, row: Row) -> Row | None:
        """The columns by which the format of a row is found; None for a row that is not of its kind."""
        try:
            if self.kind == "pairs":
                return split_pair(row).chosen
            if self.kind == "labels":
                return split_label(row)[0]
            if self.kind == "prompts":
                return complete_question(row)
        except ValueError:
            return None  # reported when the rows are read
        return row

    def show_rejected(self) -> Self:
        """The same rows of pairs with the rejected answers."""
        assert self.kind == "pairs"
        other = copy(self)
        other._shows_rejected = True
        return other

    def is_good(self, index: int) -> bool:
        """Whether the answer of document `index` is called good."""
        return split_label(self._import_columns(self._good[index]))[1]

    def _import(self, row: int) -> Document:
        return self._import_sides(row)[self._shows_rejected]

    def _import_sides(self, row: int, unread: set[str] | None = None) -> list[Document]:
        """The document of a row, or those of its chosen and its rejected answer."""

        def import_one(columns: Row) -> Conversation:
            return import_row(self.format, columns, self.folder, self.cfg.pairs, unread)

        columns = self._import_columns(row)
        if self.kind == "pairs":
            if unread is not None:
                unread |= set(split_pair(columns).unused)
            return [one.to_document() for one in import_pair(columns, import_one)]
        if self.kind == "labels":
            columns, _ = split_label(columns)
        if self.kind == "prompts":
            return [import_question(columns, import_one).to_document()]
        return [import_one(columns).to_document()]

    def _import_columns(self, row: int) -> Row:
        columns = dict(self.rows[row])
        for name in self.cfg.ignore:
            columns.pop(name, None)
        renamed = {ours: columns.pop(theirs) for ours, theirs in self._renamed.items() if theirs in columns}
        for ours in renamed.keys() & columns.keys() & self.cfg.columns.keys():
            if columns[ours] not in (None, "", []):
                raise ValueError(
                    f"columns calls {self.cfg.columns[ours]!r} {ours!r}, but there is a column {ours!r} too, which "
                    "would be lost; name it in ignore"
                )
        return name_files(columns | renamed)

    def _read_first_rows(self) -> list[Row]:
        """Those of the first rows that can be read. Raises ValueError for a name in `columns` or `ignore` that none
        has.
        """
        first: list[Row] = []
        seen: dict[str, None] = {}
        for index in range(min(len(self.rows), DETECT_ROWS)):
            try:
                seen |= dict.fromkeys(self.rows[index])
                first.append(self._import_columns(index))
            except ValueError:
                continue  # reported when the rows are read
        wanted = {theirs: f"call {ours}" for ours, theirs in self.cfg.columns.items()}
        for theirs, purpose in (wanted | dict.fromkeys(self.cfg.ignore, "ignore")).items():
            if first and theirs not in seen:
                known = ", ".join(seen)
                raise ValueError(
                    f"{quote_path(self.cfg.path)}: there is no column {theirs!r} to {purpose}; it has {known}"
                )
        return first

    def _find_format(self, first: Sequence[Row]) -> str:
        if self.cfg.format not in ("auto", "huggingface"):
            return self.cfg.format
        parts = self.rows.parts if isinstance(self.rows, JoinedRows) else [self.rows]
        if all(isinstance(part, TarRows) for part in parts):
            return "webdataset"
        try:
            first = [columns for row in first if (columns := self._take_supervised(row)) is not None]
            return detect_format(first, self.folder) if first else "trl"
        except ValueError as error:
            raise ValueError(f"{quote_path(self.cfg.path)}: {error}") from None


def open_dataset(cfg: DatasetConfig, rows: Rows | None = None, kind: RowKind = "answers") -> ImportedDataset:
    """Opens the documents of a dataset. `rows` gives the raw rows directly, e.g. `ArrowRows` of a dataset in memory.

    kind: what the rows hold.

    Raises ValueError, in one line, for a missing path, an unknown format, the first bad row under `on_bad_row="fail"`,
    and a dataset without any usable row.
    """
    if rows is not None:
        return ImportedDataset(cfg, rows, None, kind)
    return ImportedDataset(cfg, *find_rows(cfg.path, cfg.split, cfg.format == "huggingface"), kind)


def _stamp_media(documents: Sequence[Document]) -> int:
    """A 64-bit number that changes with the media files of a row's documents (sizes, times of last change); 0 if they
    name none.
    """
    parts = [part for document in documents for part in document.parts]
    paths = [part.path for part in parts if not isinstance(part, Text) and part.path is not None]
    if not paths:
        return 0
    found = [os.stat(path) for path in paths]
    digest = hashlib.sha256(repr([(one.st_size, one.st_mtime_ns) for one in found]).encode()).digest()
    return int.from_bytes(digest[:8], "little") | 1


def _name_typed_columns(rows: Rows) -> dict[str, str]:
    """Our name → the dataset's, for each of the types Image, Audio, Video and ClassLabel that exactly one column
    has.
    """
    if not isinstance(rows, ArrowRows):
        return {}
    renamed: dict[str, str] = {}
    for modality, (many, one) in list_media_columns().items():
        named = [column for column, kind in rows.media_columns.items() if kind == modality]
        if len(named) == 1 and named[0] not in (many, one):
            renamed[one] = named[0]
    classes = list(rows.class_columns)
    if len(classes) == 1 and classes[0] != LABEL_COLUMN:
        renamed[LABEL_COLUMN] = classes[0]
    return renamed

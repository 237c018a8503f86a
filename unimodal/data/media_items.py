"""Media alone, without a conversation around them: where they lie, and which of them are held out.

    photos/                    every picture below it; its caption in a .txt or .json beside it
    data.jsonl, train.parquet  the media of their rows, in any layout of `find_rows`; a hub's dataset with format
    shards/*.tar               WebDataset: read in place, nothing is unpacked

What is held out is chosen by a hash: of a column (concept, speaker, film), so that nothing of a group is on both sides,
or else of the item's name. Items are read when they are asked for; only names and places are kept.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from unimodal.data.compressed_files import find_suffix
from unimodal.data.find_rows import ROW_SUFFIXES, find_rows
from unimodal.data.folder_rows import FolderRows
from unimodal.data.importers import detect_format, import_row
from unimodal.data.importers.columns import list_media_columns, name_files, read_media
from unimodal.data.importers.pairs import PairsConfig
from unimodal.data.importers.webdataset import TarRows
from unimodal.data.media_folder import MediaFolder
from unimodal.data.rows import JoinedRows, Row, Rows
from unimodal.files import quote_path, read_json
from unimodal.media.registry import find_medium
from unimodal.sequence.document import Text

FOLDER_GROUP = "folder"  # in place of a column, of files in folders: the folder that a file lies in
TEXT_COLUMNS = ("caption", "text")
CAPTION_SUFFIXES = (".txt", ".json")  # of a file beside the medium's


@dataclass(frozen=True)
class MediaItem:
    """One medium: its file or bytes, what it is called in messages, what decides whether it is held out, and what is
    said of it ("" for nothing)."""

    source: str | bytes = field(repr=False)
    name: str
    group: str
    text: str = ""


@dataclass(frozen=True)
class ItemOptions:
    """How rows are read. group: the column that decides what is held out; `folder` for files. columns: our name of a
    column → the dataset's. split: of a dataset that has several. from_hub: the path may be a dataset of the hub.
    captioned: what is said of each medium is read too, and an item without is not usable, unless caption_optional."""

    group: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    split: str = "train"
    from_hub: bool = False
    media_root: Path | None = None
    captioned: bool = False
    caption_optional: bool = False


class MediaItems(ABC):
    """Numbered media of one kind."""

    modality: str

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> list[MediaItem]:
        """The media of a file or row; several where a row has several. ValueError for one that is not usable."""

    @abstractmethod
    def describe_place(self, index: int) -> str:
        """Where it stands, for messages."""

    @abstractmethod
    def compute_fingerprint(self) -> str:
        """Changes with the files; their contents are not read where they are large."""


class FileItems(MediaItems):
    """Every file of the medium in a folder and those below it, by name."""

    def __init__(self, folder: Path, modality: str, options: ItemOptions = ItemOptions()) -> None:
        self.folder, self.modality, self.options = folder, modality, options
        self.by_folder = options.group == FOLDER_GROUP
        suffixes = find_medium(modality).suffixes
        self.paths: list[Path] = []
        for place, folders, files in os.walk(folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            found = (Path(place, name) for name in sorted(files) if not name.startswith("."))
            self.paths += [path for path in found if path.suffix.lower() in suffixes and path.is_file()]
        self.paths.sort()

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> list[MediaItem]:
        path = self.paths[index]
        text = _read_caption(path, self.options) if self.options.captioned else ""
        return [MediaItem(str(path), quote_path(path), self.find_group(index), text)]

    def find_group(self, index: int) -> str:
        """What decides whether a file is held out, without reading it: its name, or its folder's."""
        name = self.paths[index].relative_to(self.folder)
        return (name.parent if self.by_folder else name).as_posix()

    def describe_place(self, index: int) -> str:
        return quote_path(self.paths[index])

    def compute_fingerprint(self) -> str:
        digest = hashlib.sha256()
        for path in self.paths:
            beside = [path.with_suffix(suffix) for suffix in CAPTION_SUFFIXES] if self.options.captioned else []
            sizes = [file.stat().st_size for file in (path, *beside) if file.is_file()]
            digest.update(f"{path.relative_to(self.folder).as_posix()} {' '.join(map(str, sizes))}\0".encode())
        return digest.hexdigest()


def _read_caption(path: Path, options: ItemOptions) -> str:
    """What the .txt or .json beside a medium's file says of it. ValueError where there is nothing and must be."""
    columns = options.columns
    text, rows = (path.with_suffix(suffix) for suffix in CAPTION_SUFFIXES)
    found = ""
    try:
        if text.is_file():
            found = text.read_text("utf-8-sig").strip()
        elif rows.is_file():
            found = _find_caption(read_json(rows, "mend it"), columns)
    except UnicodeDecodeError:
        raise ValueError(f"{quote_path(text)} is not UTF-8 text") from None
    if not found and not options.caption_optional:
        asked = columns.get("text", " or ".join(TEXT_COLUMNS))
        raise ValueError(f"{quote_path(path)} has no caption: write it to {text.name}, or to {rows.name} under {asked}")
    return found


def _find_caption(row: Mapping[str, object], columns: Mapping[str, str]) -> str:
    """The caption of a row or object: in the column that `columns` calls text, or in one of the usual ones."""
    names = (columns["text"], "text") if "text" in columns else TEXT_COLUMNS  # a row may be renamed already
    return next((str(row[name]).strip() for name in names if isinstance(row.get(name), str)), "")


class RowItems(MediaItems):
    """The media of the rows of a dataset: in columns of their own, or in the parts of its conversations."""

    def __init__(self, rows: Rows, modality: str, options: ItemOptions, media_root: Path | None) -> None:
        self.rows, self.modality, self.options = rows, modality, options
        self.folder = MediaFolder(options.media_root or media_root)
        if options.group is not None and len(rows):
            first = self._read_columns(0)
            if options.group not in first:
                there = ", ".join(first)
                raise ValueError(f"group: there is no column {options.group!r} in the data; it has {there}")

    def __len__(self) -> int:
        return len(self.rows)

    def _read_columns(self, index: int) -> Row:
        row = dict(self.rows[index])
        theirs = self.options.columns
        return name_files(row | {ours: row.pop(name) for ours, name in theirs.items() if name in row})

    def read(self, index: int) -> list[MediaItem]:
        row = self._read_columns(index)
        columns = {name for names in list_media_columns().values() for name in names}
        if any(row.get(name) for name in columns):
            found = {medium: list(parts) for medium, parts in read_media(row, self.folder).items()}
            sources = [part.path if part.path is not None else part.data for part in found[self.modality]]
        else:
            document = import_row(detect_format([row], self.folder), row, self.folder, PairsConfig()).to_document()
            media = [part for part in document.parts if not isinstance(part, Text) and part.modality == self.modality]
            sources = [part.source for part in media if part.codes is None]
        place = self.rows.describe_place(index)
        if not sources:
            raise ValueError(f"the row has no {find_medium(self.modality).noun}")
        text = _find_caption(row, self.options.columns)
        if self.options.captioned and not self.options.caption_optional and not text:
            raise ValueError("the row has no caption; name its column: columns={text: COLUMN}")
        made = []
        for source in sources:
            assert source is not None
            name = place if isinstance(source, bytes) else quote_path(source)
            group = str(row.get(self.options.group)) if self.options.group is not None else name
            made.append(MediaItem(source, name, group, text))
        return made

    def describe_place(self, index: int) -> str:
        return self.rows.describe_place(index)

    def compute_fingerprint(self) -> str:
        parts = self.rows.parts if isinstance(self.rows, JoinedRows) else [self.rows]
        digest = hashlib.sha256()
        for part in parts:  # a tar holds its media, so its size stands for it
            same = (
                f"{part.path.name} {part.path.stat().st_size}" if isinstance(part, TarRows) else part.compute_sha256()
            )
            digest.update(f"{len(part)} {same}\0".encode())
        return digest.hexdigest()


def open_media_items(path: str, modality: str, options: ItemOptions) -> MediaItems:
    """The media of one kind at a path: a folder of files, or a dataset of any format, tars among them.

    Raises ValueError, in one line, where there are none.
    """
    folder, medium = Path(path).expanduser(), find_medium(modality)
    if folder.is_dir() and options.group in (None, FOLDER_GROUP) and not options.from_hub:
        files = FileItems(folder, modality, options)
        if len(files) and not (options.columns or options.captioned):
            return files
        if len(files) and not _has_rows(folder, files):
            return files
    try:
        rows, media_root = find_rows(path, options.split, options.from_hub)
    except ValueError as error:
        if folder.is_dir():
            wanted = ", ".join(medium.suffixes[:4])
            raise ValueError(f"{quote_path(folder)} has no {medium.noun} files ({wanted}, …) and no dataset") from error
        raise
    if isinstance(rows, FolderRows) and options.group not in (None, FOLDER_GROUP):
        raise ValueError(f"group: {quote_path(folder)} is a folder of files, which have no column {options.group!r}; "
                         f"set it to {FOLDER_GROUP}, or name a dataset")  # fmt: skip
    if isinstance(rows, FolderRows) and not rows.count_media()[modality]:
        found = " and ".join(f"{count} {find_medium(name).noun} files" for name, count in rows.count_media().items())
        raise ValueError(
            f"{quote_path(folder)} has no {medium.noun} files but {found}; name another folder, or a tokenizer of those"
        )
    items = RowItems(rows, modality, options, media_root)
    if not len(items):
        raise ValueError(f"{quote_path(path)} has no rows; name a dataset with a {medium.noun} in each")
    return items


def _has_rows(folder: Path, files: FileItems) -> bool:
    """Whether a folder of media holds a file of rows too, as an imagefolder's metadata, and not only captions."""
    stems = {path.with_suffix("") for path in files.paths}
    return any(path.with_suffix("") not in stems for path in folder.iterdir() if find_suffix(path) in ROW_SUFFIXES)


def is_held_out(group: str, one_of: int) -> bool:
    """Whether a group is among the one in `one_of` that is held out."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:4]) % one_of == 0

"""Where the rows of a dataset lie → their reader: a file, a folder, a pattern, a dataset of the hub.

A folder may hold files of rows of one kind, an imagefolder's `metadata.jsonl` beside its media, the shards that
img2dataset left with their statistics, media by class or beside their texts, a saved dataset; or a folder for each
split, or files that are named after splits.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from unimodal.data.arrow_rows import read_hub, read_parquet, read_saved
from unimodal.data.compressed_files import find_suffix, unpack
from unimodal.data.csv_rows import CsvRows
from unimodal.data.folder_rows import FolderRows
from unimodal.data.importers.webdataset import TarRows
from unimodal.data.rows import JoinedRows, JsonlRows, JsonRows, Rows
from unimodal.data.text_rows import TextRows
from unimodal.files import is_hub_id, quote_path

ROW_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".tar")
TEXT_SUFFIX = ".txt"  # of a file that is named; in a folder, texts stand beside media
_NOT_UNPACKED = (".zst", ".zstd", ".lz4", ".br", ".zip", ".7z")  # ways to compress a file that are not read
DEFAULT_SPLIT = "train"
_SPLITS = ("train", "training", "test", "testing", "valid", "validation", "val", "dev", "eval", "evaluation")


def find_rows(name: str, split: str, from_hub: bool) -> tuple[Rows, Path | None]:
    """The raw rows at a path, and the folder that their media lie in unless `media_root` names another.

    split: which one to read, of data that has splits. from_hub: `name` may be a hub id, or a folder that `datasets`
    reads. Raises ValueError, in one line, if there are no rows, and for a split other than `train` if data has none.
    """
    if not name.strip():
        raise ValueError(f"the path of a dataset is {name!r}; name a file, a folder or a pattern of files")
    path = Path(name).expanduser()
    if path.is_dir():
        return _find_in_folder(path, split, from_hub)
    if path.is_file():
        _check_split([path], split, path)
        return _read_file(path), path.parent
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    if matches:
        _check_split(matches, split, path)
        return _join(matches), matches[0].parent
    may_be_hub = is_hub_id(name) and not path.parent.is_dir()  # else it is a path that is mistyped
    if from_hub and may_be_hub:
        return read_hub(name, split), None
    hint = "; if it is a dataset of the hub set format to huggingface" if may_be_hub and not from_hub else ""
    raise ValueError(f"{quote_path(name)}: no such file, folder or pattern of files; check the path{hint}")


def _find_in_folder(folder: Path, split: str, from_hub: bool, in_split: bool = False) -> tuple[Rows, Path]:
    """The rows of a folder, and the folder that their media lie in. in_split: `folder` is the split's own."""
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        _check_split([folder] if (folder / "state.json").is_file() else [], split, folder)
        return read_saved(folder, split), folder
    found = sorted(path for path in folder.iterdir() if path.is_file() and find_suffix(path) in ROW_SUFFIXES)
    found = _leave_statistics(found)
    packed = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in _NOT_UNPACKED]
    packed = [path for path in packed if Path(path.stem).suffix.lower() in ROW_SUFFIXES]
    if packed:
        raise ValueError(
            f"{quote_path(packed[0])} would be left out, since {packed[0].suffix} is not unpacked here; unpack it, or "
            f"name the other files, such as {quote_path(folder)}/*.jsonl"
        )
    metadata = [path for path in found if path.name.partition(".")[0] == "metadata"]
    if len(metadata) == 1:  # of an imagefolder or audiofolder
        _check_split([] if in_split else metadata, split, folder)
        return _read_file(metadata[0]), folder
    kinds = sorted({find_suffix(path) for path in found})
    if len(kinds) == 1:
        return _join(_choose_split(found, split, folder, in_split)), folder
    if kinds:
        raise ValueError(
            f"{quote_path(folder)} holds files of several kinds ({', '.join(kinds)}); name the file, or use a pattern "
            f"such as {quote_path(folder)}/*{kinds[0]}"
        )
    if from_hub:
        return read_hub(str(folder), split), folder
    inner = [path.name for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    if not in_split and inner and set(inner) <= set(_SPLITS):  # else `train` is a class, beside `car` and `bus`
        if split not in inner:
            raise ValueError(f"{quote_path(folder)} has no split {split!r}; it has {', '.join(inner)}: set split")
        return _find_in_folder(folder / split, split, from_hub, in_split=True)
    data = folder / "data"  # of a repository of the hub
    if data.is_dir() and any(find_suffix(path) in ROW_SUFFIXES for path in data.iterdir()):
        return _find_in_folder(data, split, from_hub, in_split)
    _check_split([] if in_split else [folder], split, folder)
    rows = FolderRows(folder)
    if not len(rows):
        raise ValueError(
            f"{quote_path(folder)} holds no file of {', '.join(ROW_SUFFIXES)} and no media; name the file, or use a "
            f"pattern such as {quote_path(folder)}/*.jsonl"
        )
    return rows, folder


def _leave_statistics(files: Sequence[Path]) -> list[Path]:
    """Leaves out what img2dataset writes beside its shards: `00000.parquet` and `00000_stats.json` of `00000.tar`."""
    shards = {path.name.partition(".")[0] for path in files if find_suffix(path) == ".tar"}
    return [
        path
        for path in files
        if find_suffix(path) == ".tar" or path.name.partition(".")[0].removesuffix("_stats") not in shards
    ]


def _choose_split(files: Sequence[Path], split: str, folder: Path, in_split: bool) -> list[Path]:
    """The files of a split, if files are named after splits: `train.jsonl`, `test-00000-of-00001.parquet`; else all."""
    named: dict[str, list[Path]] = {}
    for path in files:
        named.setdefault(_find_split(path), []).append(path)
    if len(named) < 2 or "" in named:
        _check_split([] if in_split else files, split, folder)
        return list(files)
    if split not in named:
        raise ValueError(f"{quote_path(folder)} has no split {split!r}; it has {', '.join(named)}: set split")
    return named[split]


def _find_split(path: Path) -> str:
    """The split that a file is named after; "" if it is named after none."""
    word = re.split(r"[-_.]", path.name)[0].lower()
    return word if word in _SPLITS else ""


def _check_split(files: Sequence[Path], split: str, place: Path) -> None:
    """Raises ValueError for a split other than the default, unless all files are named after it."""
    if split != DEFAULT_SPLIT and any(_find_split(path) != split for path in files):
        raise ValueError(
            f"{quote_path(place)} has no splits, so split {split!r} would choose nothing; leave split out, or name the "
            "file of that split"
        )


def _join(paths: Sequence[Path]) -> Rows:
    return _read_file(paths[0]) if len(paths) == 1 else JoinedRows([_read_file(path) for path in paths])


def _read_file(path: Path) -> Rows:
    suffix = find_suffix(path)
    if suffix not in (*ROW_SUFFIXES, TEXT_SUFFIX):
        known = ", ".join((*ROW_SUFFIXES, TEXT_SUFFIX))
        raise ValueError(
            f"{quote_path(path)}: a dataset is a file of {known}, also with .gz, .bz2 or .xz; "
            "convert it to one of these"
        )
    if path.exists() and not path.is_file():
        raise ValueError(f"{quote_path(path)} is no file that can be read more than once; write its rows to one")
    content = unpack(path)
    if suffix == TEXT_SUFFIX:
        return TextRows(content, path)
    if suffix == ".json":
        return JsonRows(content, path) if JsonRows.can_read(content) else JsonlRows(content, path)
    if suffix in (".csv", ".tsv"):
        return CsvRows(content, path)
    if suffix == ".parquet":
        return read_parquet(content)
    return TarRows(content, path) if suffix == ".tar" else JsonlRows(content, path)

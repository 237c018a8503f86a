"""Datasets of the package `datasets` as rows: Parquet files, saved datasets, datasets of the hub."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from unimodal.data.rows import Row, hash_files
from unimodal.files import describe_error, quote_path

if TYPE_CHECKING:
    from datasets import ClassLabel, Dataset

NEEDS_DATASETS = "needs the package datasets; install it with pip install 'unimodal[train]'"


class ArrowRows:
    """A Hugging Face dataset. Media stay undecoded (dicts of bytes and path); a ClassLabel is given by its name."""

    def __init__(self, dataset: Dataset, name: str, sha256: Callable[[], str] | None = None) -> None:
        from datasets import ClassLabel

        for column, feature in dataset.features.items():
            plain = _leave_undecoded(feature)
            if plain is not feature:
                dataset = dataset.cast_column(column, plain)
        self.dataset, self.name = dataset, name
        found = {column: _find_modality(feature) for column, feature in dataset.features.items()}
        #: column → modality, of columns whose type says what they hold
        self.media_columns: dict[str, str] = {column: kind for column, kind in found.items() if kind is not None}
        #: columns whose type is a class
        self.class_columns: dict[str, ClassLabel] = {
            column: feature for column, feature in dataset.features.items() if isinstance(feature, ClassLabel)
        }
        self._sha256 = sha256 or (lambda: hashlib.sha256(str(dataset._fingerprint).encode()).hexdigest())

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Row:
        row: dict[str, object] = dict(self.dataset[index])
        for column, classes in self.class_columns.items():
            number = row[column]
            if isinstance(number, int):  # -1: not known
                row[column] = classes.int2str(number) if number >= 0 else None
        return row

    def describe_place(self, index: int) -> str:
        return f"{self.name} row {index + 1}"

    def compute_sha256(self) -> str:
        return self._sha256()


def read_parquet(path: Path) -> ArrowRows:
    """Reads a Parquet file through `datasets`, which keeps a memory-mapped copy in its cache. ValueError without that
    package.
    """
    need_datasets(f"reading {quote_path(path)}")
    from datasets import Dataset

    try:
        dataset = Dataset.from_parquet(str(path))
    except Exception as error:  # the builders wrap errors of pyarrow in their own
        reason = describe_error(error.__cause__ or error)
        raise ValueError(f"{quote_path(path)} is not a usable Parquet file ({reason})") from None
    assert isinstance(dataset, Dataset)
    return ArrowRows(dataset, quote_path(path), lambda: hash_files([path]))


def read_saved(path: Path, split: str) -> ArrowRows:
    """Reads a folder that `save_to_disk` wrote: one dataset, or a dict of splits. Raises ValueError for anything
    else.
    """
    need_datasets(f"reading {quote_path(path)}")
    from datasets import Dataset, load_from_disk

    try:
        found: object = load_from_disk(str(path))
    except Exception as error:
        raise ValueError(f"{quote_path(path)} is not a saved dataset ({describe_error(error)})") from None
    if isinstance(found, Mapping):
        if split not in found:
            raise ValueError(f"{quote_path(path)} has no split {split!r}; it has {', '.join(found)}: set split")
        found = found[split]
    assert isinstance(found, Dataset)
    return ArrowRows(found, quote_path(path), lambda: hash_files(sorted(path.rglob("*.arrow"))))


def read_hub(name: str, split: str) -> ArrowRows:
    """Loads a dataset of the hub, or a folder that `datasets` has a loader for (`imagefolder`, `audiofolder`)."""
    need_datasets(f"reading {name}")
    from datasets import Dataset, load_dataset

    try:
        dataset = load_dataset(name, split=split)
    except Exception as error:  # network, repository, builder: many unrelated classes
        raise ValueError(
            f"the dataset {name!r} is no file here and cannot be loaded: {describe_error(error)}"
        ) from None
    assert isinstance(dataset, Dataset)
    return ArrowRows(dataset, name)


def need_datasets(what: str) -> None:
    """Raises ValueError, saying how to install it, if the package `datasets` is missing."""
    try:
        import datasets
    except ImportError:
        raise ValueError(f"{what} {NEEDS_DATASETS}") from None
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)  # its errors are raised too, and told in one line here


def _leave_undecoded(feature: object) -> object:
    """The type of a column, with its media left as bytes and paths; the same object if it holds no media."""
    from datasets import Audio, Image, LargeList, List, Video

    for kind in (Image, Audio, Video):
        if isinstance(feature, kind):
            return kind(decode=False)
    if isinstance(feature, (List, LargeList)):
        inner = _leave_undecoded(feature.feature)
        return feature if inner is feature.feature else type(feature)(inner)
    if isinstance(feature, dict):
        parts = {name: _leave_undecoded(part) for name, part in feature.items()}
        return feature if all(parts[name] is feature[name] for name in feature) else parts
    return feature


def _find_modality(feature: object) -> str | None:
    """The medium that the type of a column holds, alone or in a list; None for another type."""
    from datasets import Audio, Image, LargeList, List, Video

    inner = feature.feature if isinstance(feature, (List, LargeList)) else feature
    for kind in (Image, Audio, Video):
        if isinstance(inner, kind):
            return kind.__name__.lower()
    return None

"""Sequences that a model is likely to write again, kept beside it for fast decoders that guess from a memory.

They only speed up. Whatever the file holds, the answers of `retrieval` stay those of the plain loop, and those of `sjd`
and `coupled-sjd` keep its distribution; with another file, these two may draw another answer for the same seed.

Shapes: M sequences, T tokens of all of them.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from unimodal.files import describe_error, write_bytes_atomically

DRAFTS = "drafts.npz"  # no safetensors: servers take every such file of a folder for weights


def read_drafts(folder: Path) -> list[list[int]]:
    """The sequences of a model folder, as vocabulary rows; [] without the file. Raises ValueError for a broken file."""
    path = folder / DRAFTS
    if not path.is_file():
        return []
    try:
        with np.load(path) as held:
            ids, lengths = held["ids"], held["lengths"]
        if ids.dtype.kind != "i" or lengths.dtype.kind != "i" or ids.ndim != 1 or lengths.ndim != 1:
            raise ValueError("ids and lengths must be lists of integers")
        if (lengths < 0).any() or int(lengths.sum()) != len(ids):
            raise ValueError("the lengths do not add up")
    except (KeyError, ValueError, OSError, EOFError, BadZipFile) as error:
        reason = describe_error(error, 120)
        raise ValueError(f"{path} is no file of drafts ({reason}); make it again with tools/make_drafts.py") from None
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])] if len(lengths) else []


def write_drafts(folder: Path, sequences: Sequence[Sequence[int]]) -> Path:
    """Writes sequences of vocabulary rows beside a model, as int32 `ids` [T] and `lengths` [M]. Returns the file."""
    ids = np.array([row for sequence in sequences for row in sequence], dtype=np.int32)
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, ids=ids, lengths=lengths)
    write_bytes_atomically(folder / DRAFTS, buffer.getvalue())
    return folder / DRAFTS

"""Weights that an owner names by their file: read, and known by what they hold.

A file is known by its hash and not by its place: another one at the same place is another judge.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor


def read_named(path: Path, fill: Callable[[Mapping[str, Tensor]], object], what: str, advice: str) -> None:
    """Calls `fill` with the weights in a file. Raises ValueError, in one line, where they are others. what: the network
    that they should be of; advice: which file holds them."""
    try:
        fill(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, RuntimeError, AttributeError, TypeError, pickle.UnpicklingError, EOFError) as error:
        said = " ".join(str(error).split())[:120]
        raise ValueError(f"{path} does not hold {what} ({said}); name {advice}") from None


def hash_named(path: Path) -> str:
    """The sha256 of a file, or of all files of weights and settings in a folder, with their names."""
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    files = sorted(file for file in path.iterdir() if file.suffix in (".pth", ".pt", ".bin", ".safetensors", ".json"))
    return hashlib.sha256("".join(f"{file.name} {hash_named(file)}\n" for file in files).encode()).hexdigest()

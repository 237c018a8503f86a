"""Measured parts of a bench on the disk: what is there is not measured again.

A part is a file of arrays; its name says what was measured and on which items, and its folder of which tokenizer, on
which data and with which settings. So a bench that is interrupted goes on, and one more tokenizer costs its own time.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


class PartStore:
    """Parts below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find_or_measure(self, subject: str, name: str, measure: Callable[[], Mapping[str, np.ndarray]]) -> Arrays:
        """The arrays of a part, measured unless they are there. subject: what decides whether they are the same."""
        place = self.folder / hashlib.sha256(subject.encode()).hexdigest()[:16]
        path = place / f"{name}.npz"
        if path.is_file():
            try:
                with np.load(path, allow_pickle=False) as found:
                    return dict(found)
            except (OSError, ValueError, EOFError, zipfile.BadZipFile):
                path.unlink()  # cut off by a full disk, say
        made = dict(measure())
        place.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}.npz")
        with zipfile.ZipFile(fresh, "w") as archive:  # what numpy.savez writes, whatever the arrays are called
            for key, value in made.items():
                with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, value, allow_pickle=False)
        fresh.replace(path)
        return made

"""Batches in which an objective finds nothing of its own: that a corpus has none is said once."""

from __future__ import annotations

import warnings

PATIENCE = 50  # batches


class SilentBatches:
    """Counts batches from the first on, until one has something. what: that is looked for, and by whom. so: what
    follows."""

    def __init__(self, what: str, so: str = "it adds nothing to such a corpus") -> None:
        self.what, self.so = what, so
        self._number = 0  # so many without it; below 0: no longer counted

    def count(self, found: bool) -> None:
        """found: whether the batch has some. Warns after `PATIENCE` batches without any."""
        if self._number < 0:
            return
        self._number = -1 if found else self._number + 1
        if self._number == PATIENCE:
            warnings.warn(f"{self.what} in {PATIENCE} batches; {self.so}", stacklevel=2)
            self._number = -1

"""Short reads from many large files, through memory maps whose pages are given back.

A mapped page counts as memory of the process for as long as it stays mapped, so random reads over a large corpus would
seem to fill the memory with it. `MappedFiles` drops the pages that it has touched every so often (they stay in the
system's page cache, where the next read finds them) and keeps only so many files open.
"""

from __future__ import annotations

import mmap
from collections import OrderedDict
from pathlib import Path

MOST_OPEN = 256  # files; each costs a file descriptor
MOST_TOUCHED = 32 * 2**20  # bytes that may be touched before their pages are dropped
FAULT_AROUND = 64 * 2**10  # bytes that the kernel maps around a page which is read


class MappedFiles:
    """Reads files that may grow while they are read; a file must not shrink."""

    def __init__(self, most_open: int = MOST_OPEN) -> None:
        self.most_open = most_open
        self._maps: OrderedDict[Path, mmap.mmap] = OrderedDict()  # the one read last at the end
        self._touched = 0

    def read(self, path: Path, offset: int, size: int) -> bytes | None:
        """`size` bytes from `offset` on; None if the file is missing or ends before that."""
        end = offset + size
        mapped = self._maps.get(path)
        if mapped is None or len(mapped) < end:
            mapped = self._open(path)
            if mapped is None or len(mapped) < end:
                return None
        self._maps.move_to_end(path)
        data = mapped[offset:end]
        self._touched += size + FAULT_AROUND
        if self._touched > MOST_TOUCHED:
            self.drop_pages()
        return data

    def drop_pages(self) -> None:
        """Gives back the pages that were read; the next read maps them again."""
        self._touched = 0
        for mapped in self._maps.values():
            drop_pages(mapped)

    def _open(self, path: Path) -> mmap.mmap | None:
        """Maps a file at its present length. None for a missing file, and for an empty one, which cannot be mapped."""
        self._maps.pop(path, None)
        try:
            with path.open("rb") as stream:
                mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (FileNotFoundError, ValueError):
            return None
        self._maps[path] = mapped
        while len(self._maps) > self.most_open:
            self._maps.popitem(last=False)[1].close()
        return mapped


def drop_pages(mapped: mmap.mmap) -> None:
    """Gives the pages of a map back to the system, if it has a way to do so."""
    if hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)

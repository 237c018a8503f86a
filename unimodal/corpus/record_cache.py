"""Records by key, in append-only files that several processes read and write at once.

    folder/
      5f0c2a….data     records, one after the other
      5f0c2a….index    an entry of 40 bytes for each record: its key, where it begins, its size, two checksums

Every process appends to a pair of files of its own, so there is no lock, and a network file system will do. A record is
written before its entry; an entry carries a checksum of itself and one of its record. A record that a kill, a full disk
or a power cut has cut off is not found at the next opening and is made again; nothing else is lost.

Memory: the sorted entries of all files lie in a temporary file that is mapped, and so are the records
(`data/mapped_files.py`), so memory does not grow with the folder.

Legend: E entries.
"""

from __future__ import annotations

import mmap
import os
import secrets
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from unimodal.data.mapped_files import MappedFiles, drop_pages
from unimodal.data.order import mix64, mix64_array

KEY_BYTES = 16
MOST_RECENT = 2**14  # of this process's records that wait in a dict before they are sorted in
LOOKUPS_BETWEEN_DROPS = 512
_ENTRY = np.dtype(
    [("high", "<u8"), ("low", "<u8"), ("offset", "<u8"), ("size", "<u4"), ("crc", "<u4"), ("check", "<u8")]
)
_ENTRY_BYTES, _KEY_BYTES = struct.Struct("<QQQIIQ"), struct.Struct("<QQ")
_CHECK_START = 0x756E696D6F64616C
_SORTED = np.dtype([("low", "<u8"), ("offset", "<u8"), ("size", "<u4"), ("crc", "<u4"), ("file", "<u4")])


class Place(NamedTuple):
    """The place of a record: its data file (a number that holds in this process), its bytes there, and its checksum."""

    file: int
    offset: int
    size: int
    crc: int


class RecordCache:
    """The records of a folder. folder None: a temporary one, which is removed when the process ends."""

    def __init__(self, folder: Path | None) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="unimodal-") if folder is None else None
        self.folder = Path(self._temporary.name) if folder is None and self._temporary else Path(folder or "")
        self._files: list[Path] = []  # data files by number
        self._numbers: dict[Path, int] = {}
        self._recent: dict[bytes, Place] = {}  # written by this process since the last `refresh`
        self._records = MappedFiles()
        self._writer: _Writer | None = None
        self._sorted = _SortedEntries(np.zeros(0, _ENTRY), np.zeros(0, np.uint32))
        self._seen: dict[Path, int] = {}  # index file → its size at the last `refresh`
        self._others_wrote = False
        self.refresh()

    def get(self, key: bytes) -> tuple[Place, bytes] | None:
        """The place and the content of the record of a key; None if there is none, or none that is whole."""
        found = self._get(key)
        if found is None and self._others_wrote:
            self.refresh()
            found = self._get(key)
        return found

    def read(self, place: Place) -> bytes | None:
        """The record at a place; None if it is damaged."""
        record = self._records.read(self._files[place.file], place.offset, place.size)
        return record if record is not None and zlib.crc32(record) == place.crc else None

    def add(self, key: bytes, record: bytes) -> Place:
        """Appends a record to this process's files. Raises OSError for a disk that is full or may not be written."""
        if self._writer is None or self._writer.pid != os.getpid():  # a fork must not share the place in a file
            self._writer = _Writer(self.folder)
        try:
            offset, crc = self._writer.append(key, record)
        except OSError:
            self._writer = None  # what was cut off is left behind
            raise
        place = Place(self._number_file(self._writer.data_path), offset, len(record), crc)
        self._recent[key] = place
        if len(self._recent) >= MOST_RECENT:
            self.refresh()
        return place

    def finish_writing(self) -> None:
        """Closes this process's files, so that others see all of them; the next `get` looks for what others wrote."""
        if self._writer is not None:
            self._writer.close()
        self.refresh()
        self._others_wrote = True

    def refresh(self) -> None:
        """Reads the entries of all files again, if any file has grown."""
        self._others_wrote = False
        sizes = {path: path.stat().st_size for path in sorted(self.folder.glob("*.index"))}
        if sizes == self._seen:
            return
        self._seen = sizes
        parts = [(_read_entries(path), self._number_file(path.with_suffix(".data"))) for path in sizes]
        entries = np.concatenate([np.zeros(0, _ENTRY), *(part for part, _ in parts)])
        files = np.repeat(np.array([number for _, number in parts], np.uint32), [len(part) for part, _ in parts])  # [E]
        self._sorted = _SortedEntries(entries, files)
        self._recent.clear()

    def _get(self, key: bytes) -> tuple[Place, bytes] | None:
        recent = self._recent.get(key)
        for place in (*([recent] if recent is not None else []), *self._sorted.find(key)):
            record = self.read(place)
            if record is not None:
                return place, record
        return None

    def _number_file(self, path: Path) -> int:
        if path not in self._numbers:
            self._numbers[path] = len(self._files)
            self._files.append(path)
        return self._numbers[path]


class _Writer:
    """The pair of files that one process appends to."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.pid = os.getpid()
        name = secrets.token_hex(12)
        self.data_path, self.index_path = folder / f"{name}.data", folder / f"{name}.index"
        self._files: tuple[BinaryIO, BinaryIO] | None = None
        self._end = 0

    def append(self, key: bytes, record: bytes) -> tuple[int, int]:
        """Appends a record, and returns (where it begins, its checksum)."""
        assert len(key) == KEY_BYTES and 0 < len(record) < 2**32
        if self._files is None:
            self._files = self.data_path.open("ab"), self.index_path.open("ab")
        data, index = self._files
        offset, crc = self._end, zlib.crc32(record)
        fields = (*_split_key(key), offset, len(record), crc)
        data.write(record)
        data.flush()  # before the entry that names it
        index.write(_ENTRY_BYTES.pack(*fields, _check(fields)))
        index.flush()
        self._end += len(record)
        return offset, crc

    def close(self) -> None:
        """Flushes both files to the disk and closes them; the next record opens them again."""
        for file in self._files or ():
            os.fsync(file.fileno())
            file.close()
        self._files = None


class _SortedEntries:
    """Entries sorted by key, in a mapped file without a name."""

    def __init__(self, entries: np.ndarray, files: np.ndarray) -> None:
        order = np.argsort(entries["high"], kind="stable")
        rest = np.zeros(len(entries), _SORTED)
        for name in ("low", "offset", "size", "crc"):
            rest[name] = entries[name][order]
        rest["file"] = files[order]
        self._map: mmap.mmap | None = None
        self._high, self._rest = entries["high"][order], rest  # [E] both
        self._lookups = 0
        if len(entries):
            with tempfile.TemporaryFile() as file:
                file.write(self._high.tobytes())
                file.write(rest.tobytes())
                file.flush()
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._high = np.frombuffer(self._map, "<u8", len(entries))
            self._rest = np.frombuffer(self._map, _SORTED, len(entries), offset=8 * len(entries))

    def find(self, key: bytes) -> Iterator[Place]:
        """The places of the records of a key: several, if one was found damaged and written again."""
        high, low = _split_key(key)
        at = int(np.searchsorted(self._high, np.uint64(high)))
        while at < len(self._high) and self._high[at] == high:
            found, offset, size, crc, file = self._rest[at].tolist()
            if found == low:
                yield Place(file, offset, size, crc)
            at += 1
        self._lookups += 1
        if self._map is not None and self._lookups % LOOKUPS_BETWEEN_DROPS == 0:
            drop_pages(self._map)


def _split_key(key: bytes) -> tuple[int, int]:
    high, low = _KEY_BYTES.unpack(key)
    return high, low


def _check(fields: tuple[int, int, int, int, int]) -> int:
    """A checksum of the fields of an entry; an entry of zeros does not pass it."""
    check = _CHECK_START
    for field in fields:
        check = mix64(check ^ field)
    return check


def _read_entries(path: Path) -> np.ndarray:
    """The whole entries of an index file, [E], without those that were cut off or damaged."""
    content = path.read_bytes()
    entries = np.frombuffer(content, _ENTRY, len(content) // _ENTRY.itemsize)
    check = np.full(len(entries), _CHECK_START, np.uint64)
    for name in ("high", "low", "offset", "size", "crc"):
        check = mix64_array(check ^ entries[name].astype(np.uint64))
    return entries[check == entries["check"]]

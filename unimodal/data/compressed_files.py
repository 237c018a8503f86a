"""Compressed files of rows, unpacked once a process: `rows.jsonl.gz`, `shard.tar.gz`, `rows.csv.xz`.

Rows are read in any order, which a compressed file does not allow; so its content goes into a file of the system's
temporary folder (`$TMPDIR`), which is removed when the process ends.
"""

from __future__ import annotations

import atexit
import bz2
import gzip
import lzma
import os
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import IO

from unimodal.files import describe_error, quote_path

#: what compressed files begin with → how they are compressed
_STARTS = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ": ".xz"}
#: short suffixes → what they compress
_WHOLE = {".tgz": ".tar", ".tbz2": ".tar", ".txz": ".tar"}
_unpacked: dict[tuple[str, int, int], Path] = {}  # (file, size, time of its last change) → its content


def find_suffix(path: Path) -> str:
    """The suffix of what a file holds, compressed or not, by the file's name: `x.jsonl.gz` → `.jsonl`."""
    suffix = path.suffix.lower()
    if suffix in _WHOLE:
        return _WHOLE[suffix]
    return Path(path.stem).suffix.lower() if suffix in _STARTS.values() else suffix


def unpack(path: Path) -> Path:
    """Unpacks a compressed file, once a process, and returns the file with its content; another file is returned
    itself.

    Raises ValueError for a damaged file, and if the temporary folder has no room.
    """
    with path.open("rb") as stream:
        head = stream.read(6)
    compression = next((kind for start, kind in _STARTS.items() if head.startswith(start)), None)
    if compression is None:
        return path
    found = path.stat()
    key = (os.path.realpath(path), found.st_size, found.st_mtime_ns)
    if key not in _unpacked:
        folder = Path(tempfile.mkdtemp(prefix="unimodal-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        made = folder / f"content{find_suffix(path)}"
        try:
            with _open(path, compression) as source, made.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise ValueError(
                f"{quote_path(path)} cannot be unpacked to {folder.parent} ({describe_error(error)}); copy it again, "
                "or set TMPDIR to a folder with room"
            ) from None
        _unpacked[key] = made
    return _unpacked[key]


def _open(path: Path, compression: str) -> IO[bytes] | gzip.GzipFile:
    if compression == ".gz":
        return gzip.open(path, "rb")
    return bz2.open(path, "rb") if compression == ".bz2" else lzma.open(path, "rb")

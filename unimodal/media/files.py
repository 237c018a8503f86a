"""Opens the file or the bytes that a user named, and keeps libraries quiet while they read them."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from unimodal.files import describe_error, quote_path

MediaSource = str | os.PathLike[str] | bytes


class Opened:
    """An open file or bytes in memory, with the name that messages use."""

    def __init__(self, name: str, stream: BinaryIO, num_bytes: int) -> None:
        self.name = name
        self.stream = stream
        self.num_bytes = num_bytes

    def read(self, offset: int, count: int) -> bytes:
        """At most `count` bytes from `offset` on; fewer at the end of the file."""
        self.stream.seek(offset)
        return self.stream.read(count)

    def rewind(self) -> BinaryIO:
        self.stream.seek(0)
        return self.stream


@contextlib.contextmanager
def open_source(source: MediaSource, max_bytes: int) -> Iterator[Opened]:
    """Opens a path or bytes for reading.

    Raises ValueError for a file that is missing, not a regular file, unreadable, empty, or larger than `max_bytes`.
    """
    if isinstance(source, bytes):
        name, num_bytes = "<bytes>", len(source)
        stream: BinaryIO = io.BytesIO(source)
    else:
        path = Path(source)
        name = quote_path(path)
        try:
            status = path.stat()
        except FileNotFoundError:
            raise ValueError(f"{name}: no such file; check the path") from None
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
            raise ValueError(f"{name} cannot be opened ({describe_error(error)}); check the path") from None
        if stat.S_ISDIR(status.st_mode):
            raise ValueError(f"{name} is a folder; name one file inside it")
        if not stat.S_ISREG(status.st_mode):  # a pipe or a device could block or never end
            raise ValueError(f"{name} is not a regular file; save its content to a file first")
        try:
            stream = path.open("rb")
        except OSError as error:
            raise ValueError(f"{name} cannot be read ({describe_error(error)}); check its access rights") from None
        num_bytes = status.st_size
    with stream:
        if num_bytes == 0:
            raise ValueError(f"{name} is empty (0 bytes); copy or export it again")
        if num_bytes > max_bytes:
            raise ValueError(
                f"{name} has {num_bytes:,} bytes, over the limit max_bytes={max_bytes:,}; make it smaller{RAISE_LIMIT}"
            )
        yield Opened(name, stream, num_bytes)


RAISE_LIMIT = ", or from Python give limits=MediaLimits(…)"  # no option of a command raises one


_lock = threading.Lock()
_num_quiet = 0
_saved_filters = contextlib.ExitStack()


@contextlib.contextmanager
def silence_pillow() -> Iterator[None]:
    """Drops Pillow's warnings (of damaged EXIF, and of sizes, which our own limits check). Threads may overlap."""
    global _num_quiet
    with _lock:
        if _num_quiet == 0:
            _saved_filters.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL(\.|$)")
        _num_quiet += 1
    try:
        yield
    finally:
        with _lock:
            _num_quiet -= 1
            if _num_quiet == 0:
                _saved_filters.close()


_num_redirected = 0
_stderr_copy = -1


@contextlib.contextmanager
def silence_stderr() -> Iterator[None]:
    """Discards what is written to file descriptor 2: libmpg123 prints there and has no switch. Threads may overlap."""
    global _num_redirected, _stderr_copy
    with _lock:
        if _num_redirected == 0:
            try:
                _stderr_copy = os.dup(2)
            except OSError:  # a process without stderr
                _stderr_copy = -1
            else:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 2)
                os.close(nowhere)
        _num_redirected += 1
    try:
        yield
    finally:
        with _lock:
            _num_redirected -= 1
            if _num_redirected == 0 and _stderr_copy >= 0:
                os.dup2(_stderr_copy, 2)
                os.close(_stderr_copy)
                _stderr_copy = -1

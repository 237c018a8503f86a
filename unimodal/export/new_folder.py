"""A folder that appears whole or not at all: written beside its place under another name, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unimodal.files import read_umask
from unimodal.model_folder.layout import CONFIG_FILE, VOCABULARY_FILE

#: a folder with these is a model folder of ours, which may be replaced
OURS = (CONFIG_FILE, VOCABULARY_FILE)


def check_target(target: Path, replace: bool) -> None:
    """Raises ValueError, in one line, if no new folder can be put at `target`.

    replace: whether a model folder of ours there may be replaced.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise ValueError(f"{target} is not a folder; name another place")
    if not target.parent.is_dir():
        raise ValueError(f"{target}: there is no folder {target.parent}; create it first")
    if not os.access(target.parent, os.W_OK):
        raise ValueError(f"{target}: the folder {target.parent} may not be written; name another place")
    if target.is_dir() and any(target.iterdir()):
        if not replace:
            raise ValueError(f"{target} is not empty; name another folder, or replace it with --force")
        if not all((target / name).is_file() for name in OURS):
            raise ValueError(f"{target} is not an exported model, so it is not replaced; name another folder")


@contextmanager
def create_folder(target: Path, replace: bool = False) -> Iterator[Path]:
    """A context with an empty folder beside `target`, which is renamed to `target` if the block succeeds.

    If the block fails, the folder is removed. All files are flushed to the disk before the rename, so neither a full
    disk nor a crash leaves half of them. Raises ValueError as `check_target` does.
    """
    check_target(target, replace)
    new = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        yield new
        _flush_folder(new)
        _put_in_place(new, target)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def check_space(place: Path, num_bytes: int) -> None:
    """Raises ValueError if the disk of `place` has less room than `num_bytes`."""
    free = shutil.disk_usage(place).free
    if free < num_bytes:
        raise ValueError(
            f"{num_bytes / 1e9:.2f} GB are to be written but {place} has {free / 1e9:.2f} GB free; free some or write "
            "elsewhere"
        )


def _put_in_place(new: Path, target: Path) -> None:
    """Rename `new` to `target`; a folder that stands there is moved aside first and removed after."""
    if not (target.is_dir() and any(target.iterdir())):
        os.replace(new, target)  # an empty folder gives way
        return
    old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    os.replace(target, old)
    try:
        os.replace(new, target)
    except BaseException:
        os.replace(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _flush_folder(folder: Path) -> None:
    """Give a folder and its files the usual permissions, and flush them to the disk."""
    mask = read_umask()
    for path in [folder, *folder.rglob("*")]:
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

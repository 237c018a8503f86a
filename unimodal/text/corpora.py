"""Corpora of plain text: UTF-8 files, also gzipped, read line by line and refused where they are something else."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path

from unimodal.files import describe_error, quote_path

PIECE_BYTES = 1024  # of a text that is learnt or measured
_GZIP = b"\x1f\x8b"


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, plain or gzipped. Raises ValueError, in one line, for a file that is no such text."""
    try:
        data = Path(path).read_bytes()
        if data.startswith(_GZIP):
            data = gzip.decompress(data)
    except FileNotFoundError:
        raise ValueError(f"{quote_path(path)}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{quote_path(path)} cannot be read ({describe_error(error)})") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{quote_path(path)} is not UTF-8: line {line} holds the byte 0x{data[error.start]:02x}; "
            "convert it with `iconv -f ITS_ENCODING -t UTF-8`"
        ) from None
    if "\0" in text:
        raise ValueError(
            f"{quote_path(path)} holds zero bytes: it is no text, or UTF-16; convert it with `iconv -t UTF-8`"
        )
    return text


def read_lines(paths: Sequence[str | Path]) -> list[str]:
    """The lines of all files that are not blank, without their ends. Raises ValueError where there is none."""
    lines = [line for path in paths for line in _split_lines(read_text(path)) if line.strip()]
    if not lines:
        raise ValueError(f"there is no text in {', '.join(quote_path(path) for path in paths)}")
    return lines


def read_parallel(paths: Sequence[str | Path]) -> list[list[str]]:
    """Files whose lines translate each other: the lines of each, blank ones too.

    Raises ValueError for fewer than two files and for files of unequal length.
    """
    if len(paths) < 2:
        raise ValueError("parallel text is at least two files whose lines translate each other")
    found = [_split_lines(read_text(path)) for path in paths]
    for path, lines in zip(paths, found, strict=True):
        if len(lines) != len(found[0]):
            raise ValueError(
                f"{quote_path(path)} has {len(lines)} lines and {quote_path(paths[0])} {len(found[0])}: "
                "line by line they are to say the same"
            )
        if not any(line.strip() for line in lines):
            raise ValueError(f"there is no text in {quote_path(path)}")
    return found


def take_bytes(lines: Sequence[str], most_bytes: int | None) -> list[str]:
    """The first lines of a text, at most so many bytes of them, but at least one; None: all."""
    kept: list[str] = []
    size = 0
    for line in lines:
        size += len(line.encode("utf-8", "surrogatepass")) + 1
        if most_bytes is not None and size > most_bytes and kept:
            break
        kept.append(line)
    return kept


def cut_pieces(lines: Sequence[str], most_bytes: int = PIECE_BYTES) -> list[str]:
    """Lines put together to pieces of at most so many bytes; a longer line is cut between its characters."""
    pieces: list[str] = []
    for line in lines:
        parts, size = [""], 0
        for letter in f"{line}\n":
            length = len(letter.encode("utf-8", "surrogatepass"))
            if size + length > most_bytes:
                parts.append("")
                size = 0
            parts[-1] += letter
            size += length
        for part in parts:
            if pieces and len((pieces[-1] + part).encode("utf-8", "surrogatepass")) <= most_bytes:
                pieces[-1] += part
            else:
                pieces.append(part)
    return pieces


def hash_lines(lines: Sequence[str]) -> str:
    """The sha256 of a corpus, by which a trained tokenizer names what it was trained on."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def _split_lines(text: str) -> list[str]:
    """Lines by "\\n" alone; a "\\r" before it goes with it."""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return lines[:-1] if lines and not lines[-1] else lines

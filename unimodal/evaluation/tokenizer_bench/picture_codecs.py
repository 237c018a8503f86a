"""JPEG, WebP and AVIF at very few bytes, without what every file of theirs shares.

Counted are the bytes that say something of the picture: of a JPEG its scan (tables and headers could be shared), of a
WebP the data of its VP8 chunk without start code and size, of an AVIF its media data without the sequence's header. A
picture may be coded at a smaller
size and magnified again. The best picture by mean squared error within the budget counts; where none fits, the smallest
file counts, and the row says by its bytes that the budget is out of the codec's reach.

Shapes: S side of a picture.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, features
from torch import Tensor

from unimodal.media.image import to_bytes

SHARES = (1.0, 0.75, 0.5, 0.375, 0.25, 0.1875, 0.125, 0.09375)  # of the side that is coded
SMALLEST_SIDE = 8
QUALITIES = (0, 2, 5, 10, 20, 30, 45, 60, 75, 85, 92)
CODECS = ("jpeg", "webp", "avif")
CODED = 2  # version of what counts
START_OF_VP8 = 7  # bytes of a frame: a start code, width and height (RFC 6386, 9.1)
SHARED_UNITS = (1, 2)  # kinds of AV1's units: the header of the sequence, and the mark before each picture


@dataclass(frozen=True)
class CodedPicture:
    """A file's bytes that count, and the picture float [3, S, S] that it decodes to."""

    num_bytes: int
    picture: Tensor
    error: float


def list_codecs() -> list[str]:
    """The codecs that the installed Pillow writes."""
    return [codec for codec in CODECS if features.check({"jpeg": "jpg"}.get(codec, codec))]


def try_sizes(codec: str, picture: Tensor, most_bytes: float) -> list[CodedPicture]:
    """Every size and quality of [3, S, S] up to a number of bytes, and the first file of each size."""
    original = Image.fromarray(to_bytes(picture).permute(1, 2, 0).contiguous().numpy())
    tried = []
    for side in sorted({max(SMALLEST_SIDE, round(share * original.width)) for share in SHARES}, reverse=True):
        small = original if side == original.width else original.resize((side, side), Image.Resampling.LANCZOS)
        for quality in QUALITIES:
            coded = _code(codec, small, quality, picture)
            tried.append(coded)
            if coded.num_bytes > most_bytes:
                break  # a higher quality is larger still
    return tried


def choose_within(tried: list[CodedPicture], budget_bytes: float) -> CodedPicture:
    """The nearest picture within the budget, or else the smallest file."""
    fitting = [coded for coded in tried if coded.num_bytes <= budget_bytes]
    return min(fitting, key=lambda coded: coded.error) if fitting else min(tried, key=lambda coded: coded.num_bytes)


def _code(codec: str, small: Image.Image, quality: int, picture: Tensor) -> CodedPicture:
    memory = io.BytesIO()
    if codec == "jpeg":
        small.save(memory, "JPEG", quality=quality, optimize=True, subsampling=2)
    elif codec == "webp":
        small.save(memory, "WEBP", quality=quality, method=6)
    else:
        small.save(memory, "AVIF", quality=quality, speed=6, subsampling="4:2:0", max_threads=1)
    data = memory.getvalue()
    decoded = Image.open(memory).convert("RGB")
    size = (picture.shape[2], picture.shape[1])
    if decoded.size != size:
        decoded = decoded.resize(size, Image.Resampling.BICUBIC)
    made = torch.from_numpy(np.array(decoded)).permute(2, 0, 1).float() / 255
    return CodedPicture(count_payload(codec, data), made, float((made - picture).square().mean()))


def count_payload(codec: str, data: bytes) -> int:
    """The bytes of a file that are not shared by all files of its codec."""
    if codec == "jpeg":  # from behind the header of the scan to the end marker
        scan = data.index(b"\xff\xda")
        return len(data) - scan - 2 - int.from_bytes(data[scan + 2 : scan + 4], "big") - 2
    if codec == "webp":
        chunks = {data[at - 8 : at - 4]: size for at, size in _list_chunks(data)}
        return chunks.get(b"VP8 ", START_OF_VP8) - START_OF_VP8 + chunks.get(b"VP8L", 0) + chunks.get(b"ALPH", 0)
    return sum(count_units(data[at : at + size]) for name, at, size in _list_boxes(data) if name == b"mdat")


def count_units(data: bytes) -> int:
    """The bytes of AV1's units (section 5.3 of its specification) that pictures could not share."""
    at = found = 0
    while at < len(data):
        begin, head = at, data[at]
        at += 2 if head & 4 else 1
        size = len(data) - at
        if head & 2:  # it says its size, seven bits a byte, the lowest first
            size = shift = 0
            while True:
                byte = data[at]
                size |= (byte & 127) << shift
                at, shift = at + 1, shift + 7
                if byte < 128:
                    break
        at += size
        found += 0 if head >> 3 & 15 in SHARED_UNITS else at - begin
    return found


def _list_chunks(data: bytes) -> Iterator[tuple[int, int]]:
    """Where the contents of the chunks of a RIFF file begin, and their sizes."""
    at = 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        yield at + 8, size
        at += 8 + size + size % 2


def _list_boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Names of the outer boxes of an ISO media file, where their contents begin and their sizes."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        head = 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        size = size or len(data) - at
        yield data[at + 4 : at + 8], at + head, size - head
        at += size

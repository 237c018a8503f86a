"""JPEG and WebP at very few bytes: the quality of a 64×64 picture at the size of its codes.

Every side and quality of the lists below is tried. The best file within the budget counts; if none fits, the smallest
file at full size counts, and its bytes are reported. Most bytes of a small JPEG file are tables that could be shared;
`jpeg_scan` counts the bytes of its scan alone.

Shapes: H, W height and width.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unimodal.media.image import to_bytes

SIDES = (64, 48, 32, 24, 16, 12, 8)
QUALITIES = (0, 2, 5, 10, 20, 30, 45, 60, 80)
CODECS = ("webp", "jpeg", "jpeg_scan")  # jpeg_scan: the bytes of a JPEG's headers are not counted


@dataclass(frozen=True)
class CodecPicture:
    """A picture decoded from a codec's file, and the size of that file."""

    num_bytes: int
    picture: Tensor  # float32 [3, H, W]


def encode_within(codec: str, picture: Tensor, budget_bytes: int) -> CodecPicture:
    """The codec's picture nearest to `picture` [3, H, W], by mean squared error, within the budget of bytes."""
    best: tuple[float, CodecPicture] | None = None
    smallest: CodecPicture | None = None
    original = Image.fromarray(to_bytes(picture).permute(1, 2, 0).contiguous().numpy())
    for side in SIDES:
        if side > original.width:
            continue
        small = original if side == original.width else original.resize((side, side), Image.Resampling.LANCZOS)
        for quality in QUALITIES:
            tried = _encode(codec, small, quality, original.size)
            if side == original.width and (smallest is None or tried.num_bytes < smallest.num_bytes):
                smallest = tried
            if tried.num_bytes > budget_bytes:
                break  # a higher quality is larger still
            error = float((tried.picture - picture).square().mean())
            if best is None or error < best[0]:
                best = (error, tried)
    assert smallest is not None
    return smallest if best is None else best[1]


def _encode(codec: str, picture: Image.Image, quality: int, size: tuple[int, int]) -> CodecPicture:
    memory = io.BytesIO()
    if codec == "webp":
        picture.save(memory, "WEBP", quality=quality, method=6)
        num_bytes = memory.tell()
    else:
        picture.save(memory, "JPEG", quality=quality, optimize=True, subsampling=2)
        data = memory.getvalue()
        # the scan begins behind the start-of-scan marker and its header, and ends with the two bytes of the end marker
        scan = data.index(b"\xff\xda")
        header = 2 + int.from_bytes(data[scan + 2 : scan + 4], "big")
        num_bytes = len(data) if codec == "jpeg" else len(data) - scan - header - 2
    memory.seek(0)
    decoded = Image.open(memory).convert("RGB")
    if decoded.size != size:
        decoded = decoded.resize(size, Image.Resampling.BICUBIC)
    return CodecPicture(num_bytes, torch.from_numpy(np.array(decoded)).permute(2, 0, 1).float() / 255)

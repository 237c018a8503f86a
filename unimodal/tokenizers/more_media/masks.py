"""Segmentation masks as a medium: portable bitmaps (`.pbm`, P4), whose black pixels lie in the mask. HiMTok codes them
(`unimodal/tokenizers/systems/himtok.py`).

A mask is float [1, H, W] of 0 and 1.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from unimodal.files import write_bytes_atomically
from unimodal.media.files import MediaSource, open_source
from unimodal.media.limits import MediaLimits
from unimodal.media.registry import FileTarget, Medium, register

_HEADER = re.compile(rb"P4\s+(?:#[^\n]*\n\s*)*(\d+)\s+(\d+)\s")


def is_mask(head: bytes) -> bool:
    return head[:2] == b"P4" and head[2:3].isspace()


def load_mask(source: MediaSource, target: FileTarget, limits: MediaLimits) -> Tensor:
    """A bitmap as float [1, H, W], resized without blur where a tokenizer wants a size. Raises ValueError for a file
    that is none."""
    with open_source(source, limits.max_bytes) as opened:
        data, name = opened.read(0, opened.num_bytes), opened.name
    header = _HEADER.match(data)
    if header is None:
        raise ValueError(f"{name} is no portable bitmap (P4); convert it, or export it again")
    width, height = int(header[1]), int(header[2])
    if width * height > limits.max_pixels:
        raise ValueError(f"{name} has {width}×{height} pixels, more than max_pixels = {limits.max_pixels}")
    row = (width + 7) // 8
    body = data[header.end() : header.end() + row * height]
    if not width or not height or len(body) < row * height:
        raise ValueError(f"{name} says {width}×{height} pixels and holds fewer; export it again")
    bits = np.unpackbits(np.frombuffer(body, np.uint8).reshape(height, row), axis=1)[:, :width]
    mask = torch.from_numpy(bits.astype(np.float32))[None]
    if target.picture_size is None or target.picture_size == (height, width):
        return mask
    return interpolate(mask[None], size=target.picture_size, mode="nearest-exact")[0]


def save_mask(mask: Tensor, path: str | Path, rate: float | None) -> None:
    """mask: float [1, H, W]; what is above a half lies in it."""
    bits = (mask[0] > 0.5).cpu().numpy()
    head = f"P4\n{bits.shape[1]} {bits.shape[0]}\n".encode()
    write_bytes_atomically(path, head + np.packbits(bits, axis=1).tobytes())


register(
    Medium(
        name="mask",
        noun="mask",
        suffixes=(".pbm",),
        formats=("PBM",),
        sent_as=(".pbm", "image/x-portable-bitmap"),
        ask="segment",
        axes="chw",
        recognise=f"{__name__}:is_mask",
        load=f"{__name__}:load_mask",
        save=f"{__name__}:save_mask",
    )
)

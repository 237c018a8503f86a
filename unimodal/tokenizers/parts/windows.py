"""Long sounds through an encoder that hears a limited stretch: windows that overlap, of which each gives away half.

Shapes: B batch, N codes, G groups.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: windows that are encoded together
BATCH = 8


def list_windows(num_frames: int, size: int, overlap: int, published: bool = False) -> list[tuple[int, int]]:
    """Where windows begin and end. published: also those that begin where the one before has reached the end already,
    as S3Tokenizer's code has them."""
    if num_frames <= size:
        return [(0, num_frames)]
    starts = range(0, num_frames if published else num_frames - overlap, size - overlap)
    return [(start, min(start + size, num_frames)) for start in starts]


def encode_windows(
    frames: Tensor, encode: Callable[[Tensor], Tensor], size: int, overlap: int, per_code: int, published: bool = False
) -> Tensor:
    """frames: of sounds of one length, [B, M, F] → what ``encode``, [b, M, f] → [b, n, G], gives for the windows,
    joined in the middle of their overlaps: [B, N, G]. per_code: frames that a code stands for."""
    windows = list_windows(frames.shape[-1], size, overlap, published)
    full = [start for start, end in windows if end - start == size]
    found: list[Tensor] = []
    for first in range(0, len(full), BATCH):
        some = full[first : first + BATCH]
        found += encode(torch.cat([frames[..., start : start + size] for start in some])).chunk(len(some))
    found += [encode(frames[..., start:end]) for start, end in windows[len(full) :]]
    half = overlap // 2 // per_code
    kept = [
        ids[:, half if number else 0 : ids.shape[1] - (half if number + 1 < len(found) else 0)]
        for number, ids in enumerate(found)
    ]
    return torch.cat(kept, dim=1)

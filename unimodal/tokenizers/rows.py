"""Batches of items of different sizes, for networks that see the whole of an item: those of one size go together.

Shapes: B batch, N codes, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from unimodal.tokenizers.codes import Codes, Grid, Latents

SizeT = TypeVar("SizeT", bound=Hashable)


def group_by_size(sizes: Iterable[SizeT]) -> dict[SizeT, list[int]]:
    """The numbers of a batch's items by their size, in order."""
    groups: dict[SizeT, list[int]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault(size, []).append(index)
    return groups


def decode_rows(codes: Codes | Latents, decode: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Every item's real codes decoded, those of one length together. decode: int64 [B, N, G] → [B, …]."""
    lengths = codes.counts
    found: dict[int, Tensor] = {}
    for items in group_by_size(lengths).values():
        decoded = decode(torch.stack([codes.row(item) for item in items]))
        found.update(zip(items, decoded, strict=True))
    return [found[item] for item in range(len(lengths))]


def check_counts(codes: Codes, wanted: int) -> None:
    """ValueError unless every item of a batch has so many codes."""
    if any(count != wanted for count in codes.counts):
        raise ValueError(f"a picture is {wanted} codes; got {codes.counts}")


def find_picture_grid(count: int, grid: Grid | None) -> tuple[int, int]:
    """Rows and columns of so many positions: the grid's where it fits, otherwise a square. ValueError for neither."""
    if grid is not None and grid[0] == 1 and grid[1] * grid[2] == count:
        return grid[1], grid[2]
    side = math.isqrt(count)
    if side * side != count:
        raise ValueError(f"{count} codes are no square picture; give their grid of rows and columns")
    return side, side


def pad_media(media: list[Tensor]) -> Tensor:
    """Media [C, …] of different sizes → one batch, 0 past the end of the smaller ones."""
    longest = [max(sides) for sides in zip(*(medium.shape for medium in media), strict=True)]
    batch = media[0].new_zeros(len(media), *longest)
    for index, medium in enumerate(media):
        batch[(index, *(slice(side) for side in medium.shape))] = medium
    return batch


def check_lengths(lengths: Tensor, x: Tensor, taken: bool, family: str) -> None:
    """ValueError unless lengths fits media x [B, C, …]: int64 [B], or [B, 2] of pictures' heights and widths. taken:
    whether the family takes any."""
    if not taken:
        raise ValueError(f"{family} takes items of one size together; leave lengths out, and give others by themselves")
    whole = isinstance(lengths, Tensor) and lengths.dtype in (torch.int32, torch.int64)
    axes = lengths.shape[1] if whole and lengths.dim() == 2 else 1
    longest = list(x.shape[2 : 2 + axes]) if x.dim() > 2 else [0]
    rows = lengths.reshape(len(lengths), -1).tolist() if whole and lengths.dim() else []
    fit = all(1 <= value <= most for row in rows for value, most in zip(row, longest, strict=False))
    if len(rows) != len(x) or not fit or lengths.dim() > 2:
        most = " and ".join(map(str, longest))
        raise ValueError(
            f"lengths must be one number from 1 to {most} for each of {len(x)} items; got "
            f"{lengths.tolist() if isinstance(lengths, Tensor) else lengths!r}"
        )

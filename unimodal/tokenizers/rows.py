"""Batches of items of different sizes, for networks that see the whole of an item: those of one size go together.

Shapes: B batch, N codes, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from unimodal.tokenizers.codes import Codes

SizeT = TypeVar("SizeT", bound=Hashable)


def group_by_size(sizes: Iterable[SizeT]) -> dict[SizeT, list[int]]:
    """The numbers of a batch's items by their size, in order."""
    groups: dict[SizeT, list[int]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault(size, []).append(index)
    return groups


def decode_rows(codes: Codes, decode: Callable[[Tensor], Tensor]) -> list[Tensor]:
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

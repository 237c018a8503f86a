"""The units in which a picture's codes are written: single codes, cells, subsamples, scales, or all at once (xAR).

    token       one code after the other
    cell        k × k neighbouring codes
    subsample   every k-th code of every k-th row: k · k grids, one shifted from the other
    scale       from coarse to fine: the codes at multiples of the largest power of two, then those of half of it, …
                or, for codes that a tokenizer gives in scales, runs of given lengths
    whole       all codes

As in "Beyond Next-Token: Next-X Prediction" (arXiv 2502.20388), whose released code has cells. A scale is there a
picture of fewer patches; codes of one resolution have no such picture, so theirs are grids within grids.

Shapes: L codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Unit = Literal["token", "cell", "subsample", "scale", "whole"]


def number_entities(
    count: int, unit: Unit, size: int = 2, columns: int | None = None, lengths: Sequence[int] = ()
) -> Tensor:
    """The entity of each of `count` codes in their order in the span, int64 [L], numbered in the order of writing.

    size: k. columns: codes in a row, for cells, subsamples and scales of a raster. lengths: of scales, in place of
    these. Raises ValueError, in one line, for a span that cannot be so divided.
    """
    if unit == "token":
        return torch.arange(count)
    if unit == "whole":
        return torch.zeros(count, dtype=torch.int64)
    if unit == "scale" and lengths:
        if sum(lengths) != count or min(lengths) < 1:
            raise ValueError(f"scales of {', '.join(map(str, lengths))} codes are not a span of {count}")
        return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(list(lengths)))
    if columns is None:
        raise ValueError(
            f"a {unit} is a part of a raster, and the codes are not in raster order (or their columns are not given); "
            "use unit token or whole, or scale with lengths"
        )
    if columns < 1 or count % columns:
        raise ValueError(f"{count} codes are no rows of {columns}")
    rows = count // columns
    row, column = torch.arange(count) // columns, torch.arange(count) % columns
    if unit == "scale":
        strides = [2**level for level in range(min(rows, columns).bit_length())][::-1]
        found = torch.full((count,), len(strides) - 1)
        for number, stride in reversed(list(enumerate(strides))):
            found[(row % stride == 0) & (column % stride == 0)] = number
        return found.unique(return_inverse=True)[1]  # a stride may add no code
    if size < 1 or rows % size or columns % size:
        raise ValueError(f"{unit}s of size {size} do not divide {rows} rows of {columns} codes")
    if unit == "cell":
        return row // size * (columns // size) + column // size
    return row % size * size + column % size


def find_span_entities(
    block: str,
    count: int,
    unit: Unit,
    size: int,
    columns: dict[str, int],
    lengths: dict[str, tuple[int, ...]],
) -> Tensor:
    """`number_entities` of the spans of a block, with its columns and lengths by name. Errors name the block."""
    try:
        return number_entities(count, unit, size, columns.get(block), lengths.get(block, ()))
    except ValueError as error:
        raise ValueError(f"block {block!r}: {error}") from None

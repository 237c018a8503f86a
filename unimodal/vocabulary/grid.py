"""Pictures of any shape, written as their size in digits and then rows of codes with a mark behind each.

    <start> 4 * 6 <open> 6 codes <end of row> 6 codes <end of row> … <end of grid> <end>

This is how Emu3 (arXiv 2409.18869) writes a picture of 4 rows and 6 columns. The digits are text rows.

Legend: H rows and W columns of the grid, N = H · W codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict

Grid = tuple[int, int]
LONGEST_SIDE = 9999


@dataclass(frozen=True, kw_only=True)
class GridMarks:
    """The rows of the vocabulary around the codes; grid: rows and columns of a picture to draw, by default."""

    digits: tuple[int, ...]  # the text rows of 0 … 9
    times: int  # the text row of *
    open: int
    end_of_row: int
    end_of_grid: int
    grid: Grid
    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        object.__setattr__(self, "digits", tuple(self.digits))
        object.__setattr__(self, "grid", tuple(self.grid))
        if len(self.digits) != 10 or len({*self.digits, *self.marks, self.times}) != 14:
            raise ValueError("a grid needs ten digits, * and three marks, each with a row of its own")
        self.check(self.grid)

    @property
    def marks(self) -> tuple[int, int, int]:
        return self.open, self.end_of_row, self.end_of_grid

    @staticmethod
    def check(grid: Sequence[int]) -> Grid:
        if len(grid) != 2 or not all(1 <= side <= LONGEST_SIDE for side in grid):
            raise ValueError(f"{list(grid)} is no grid; give rows and columns from 1 to {LONGEST_SIDE}")
        return int(grid[0]), int(grid[1])

    def make_header(self, grid: Grid) -> list[int]:
        """The rows of the vocabulary between the start of the span and its first code."""
        height, width = self.check(grid)
        spelled = [[self.digits[int(digit)] for digit in str(side)] for side in (height, width)]
        return [*spelled[0], self.times, *spelled[1], self.open]

    def count_rows(self, grid: Grid) -> int:
        """The number of rows of the whole span, its start and end included."""
        return 2 + len(self.make_header(grid)) + grid[0] * (grid[1] + 1) + 1

    def read_header(self, rows: Sequence[int]) -> tuple[Grid, int] | None:
        """The grid in a span's header, and the number of rows of that header; None for an incomplete one.

        rows: those behind the start of the span. Raises ValueError for a wrong header.
        """
        sides: list[str] = [""]
        for index, row in enumerate(rows):
            if row in self.digits:
                sides[-1] += str(self.digits.index(row))
            elif row == self.times and len(sides) == 1:
                sides.append("")
            elif row == self.open and len(sides) == 2 and all(sides):
                grid = self.check([int(side) for side in sides])
                if list(rows[: index + 1]) != self.make_header(grid):
                    break
                return grid, index + 1
            else:
                break
        else:
            return None
        raise ValueError("the size of the picture is badly written; it is rows * columns in digits")

    def encode(self, codes: np.ndarray, block: range, grid: Grid | None) -> list[int]:
        """Codes int64 [N] of the block → all rows between the start and the end of the span.

        grid: rows and columns, by default those of `self.grid`. Raises ValueError for codes that do not fill them.
        """
        height, width = self.grid if grid is None else self.check(grid)
        if height * width != len(codes):
            given = "the picture has no grid of its own" if grid is None else "its grid"
            raise ValueError(
                f"{len(codes)} codes are not {height} rows of {width} ({given}); give its rows and columns"
            )
        if ((codes < 0) | (codes >= len(block))).any():
            raise ValueError(f"the codes of a picture must lie in 0..{len(block) - 1}")
        lines = np.full((height, width + 1), self.end_of_row, dtype=np.int64)
        lines[:, :width] = codes.reshape(height, width) + block.start
        return [*self.make_header((height, width)), *lines.reshape(-1).tolist(), self.end_of_grid]

    def decode(self, rows: np.ndarray, block: range) -> tuple[np.ndarray, Grid]:
        """The inverse of `encode`: codes int64 [N], and their grid. Raises ValueError for a wrong mark or code."""
        found = self.read_header(rows.tolist())
        if found is None:
            raise ValueError("the picture's size is cut off")
        (height, width), begin = found
        if len(rows) != begin + height * (width + 1) + 1 or rows[-1] != self.end_of_grid:
            raise ValueError(f"the picture is not {height} rows of {width} codes and their marks")
        lines = rows[begin:-1].reshape(height, width + 1)
        if (lines[:, -1] != self.end_of_row).any():
            raise ValueError(f"a row of the picture does not end behind {width} codes")
        codes = lines[:, :width].reshape(-1) - block.start
        if ((codes < 0) | (codes >= len(block))).any():
            raise ValueError("the picture holds a token that is no code of its block")
        return codes, (height, width)

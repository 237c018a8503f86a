"""Windows over the runs of a span: how many tokens each run gets, and the matrices that average or sample them.

A run of n² picture or clip codes counts as an n×n raster if the number of windows forms a grid too. Everything else,
sound above all, is a line in time.

Shapes: N tokens, M windows; n and m the same for one run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isqrt

import torch
from torch import Tensor


def allot(count: int, lengths: Sequence[int]) -> list[int]:
    """Divide `count` tokens over runs in proportion to their lengths, by largest remainders, ties to the first."""
    total = sum(lengths)
    exact = [count * length / total for length in lengths]
    given = [int(part) for part in exact]
    order = sorted(range(len(lengths)), key=lambda i: (given[i] - exact[i], i))
    for run in order[: count - sum(given)]:
        given[run] += 1
    return given


def find_raster(num: int) -> tuple[int, int] | None:
    """The sides of a square raster of `num` tokens, or None if they form none."""
    side = isqrt(num)
    return (side, side) if side * side == num and side > 1 else None


def find_grid(num: int, sides: tuple[int, int]) -> tuple[int, int] | None:
    """A grid (high, wide) of exactly `num` windows that fits into the sides and is at most twice as wide as high."""
    for high in range(isqrt(num), 0, -1):
        wide = num // high
        if high * wide == num and wide <= min(2 * high, sides[1]) and high <= sides[0]:
            return high, wide
    return None


def average_line(num: int, count: int) -> Tensor:
    """The matrix [m, n] that averages a line of n tokens over m disjoint windows, as even as can be; rows sum to 1."""
    window = ((torch.arange(num) + 0.5) * count / num).long().clamp(max=count - 1)
    matrix = torch.zeros(count, num)
    matrix[window, torch.arange(num)] = 1.0
    return matrix / matrix.sum(1, keepdim=True)


def interpolate_line(num: int, count: int) -> Tensor:
    """The matrix [m, n] that interpolates a line of n tokens at m points, pixel centres aligned; rows sum to 1."""
    at = ((torch.arange(count) + 0.5) * num / count - 0.5).clamp(0, num - 1)
    low = at.long().clamp(max=max(num - 2, 0))
    part = at - low
    matrix = torch.zeros(count, num)
    matrix[torch.arange(count), low] += 1 - part
    matrix[torch.arange(count), (low + 1).clamp(max=num - 1)] += part
    return matrix


def map_runs(
    segments: Sequence[int], count: int, is_raster: bool, line: Callable[[int, int], Tensor]
) -> tuple[Tensor, Tensor]:
    """The matrix [M, N] that applies `line` inside every run, and the token in the middle of each window, int64 [M].

    segments: lengths of the runs, N in all. line: (n, m) → a matrix [m, n]. is_raster: square runs are rasters.
    """
    blocks, middles, offset = [], [], 0
    given_each = allot(count, segments)
    if 0 in given_each:  # fewer windows than runs: one line over all
        segments, given_each = [sum(segments)], [count]
    for length, given in zip(segments, given_each, strict=True):
        sides = find_raster(length) if is_raster else None
        grid = find_grid(given, sides) if sides else None
        matrix = torch.kron(line(sides[0], grid[0]), line(sides[1], grid[1])) if grid and sides else line(length, given)
        blocks.append(matrix)
        middles += _find_middles(matrix, offset)
        offset += length
    return torch.block_diag(*blocks), torch.tensor(middles)


def _find_middles(matrix: Tensor, offset: int) -> list[int]:
    """A token near the middle of every window, all different and ascending."""
    chosen: list[int] = []
    for row in matrix:
        inside = row.nonzero()[:, 0].tolist()
        chosen.append(inside[len(inside) // 2])
    order = sorted(set(chosen))
    if chosen != order:  # interpolation may name a token twice
        step = matrix.shape[1] / len(matrix)
        chosen = [int((i + 0.5) * step) for i in range(len(matrix))]
    return [offset + token for token in chosen]

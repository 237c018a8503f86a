"""Cheap token mixers in the place of attention: blocks of trunks whose cost grows more slowly with the tokens.

A config that has a `mixer` names one of these; "attention" is the trunk's own block. Each is one file.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from unimodal.tokenizers.parts.mixers.ponet import PoNetBlock
from unimodal.tokenizers.parts.mixers.poolformer import PoolFormerBlock
from unimodal.tokenizers.parts.mixers.raftmlp import RaftBlock

__all__ = ["MIXERS", "Mixer", "make_mixer_block"]

#: what mixes the tokens of a block
Mixer = Literal["attention", "ponet", "poolformer", "raftmlp"]

#: the block of each mixer but attention
MIXERS: dict[Mixer, type[nn.Module]] = {"ponet": PoNetBlock, "poolformer": PoolFormerBlock, "raftmlp": RaftBlock}


def make_mixer_block(mixer: Mixer, width: int, num_heads: int, inner: int, grid: tuple[int, int]) -> nn.Module:
    """A block over a grid of (rows, columns) in raster order; a line is a grid of one row.

    num_heads: of PoNet, whose segments are the rows of the grid, and the eighths of a line. inner: width of the
    feed-forward layer. ValueError for attention, which is the trunk's own, and for sizes that do not divide.
    """
    if mixer == "poolformer":
        return PoolFormerBlock(width, grid, inner)
    if mixer == "raftmlp":
        return RaftBlock(width, grid, inner)
    if mixer == "ponet":
        return PoNetBlock(width, num_heads, divide_line(grid[1]) if grid[0] == 1 else (grid[1],) * grid[0], inner)
    raise ValueError(f"there is no mixer {mixer!r} beside attention; choose from {', '.join(MIXERS)}")


def divide_line(length: int, parts: int = 8) -> tuple[int, ...]:
    """Lengths of at most so many segments of a line, even and the last no longer: 20 → 3, 3, 3, 3, 3, 3, 2."""
    size = -(-length // parts)
    return tuple(min(size, length - start) for start in range(0, length, size))

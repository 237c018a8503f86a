"""Rows ⇄ positions of the sequence: one row a position, or the codes of a whole step summed at one.

A tokenizer with G groups gives G codes a step. Its blocks have the layout `flat`, where they are G positions, or
`summed`, where they are one (the patterns `flattening` and `parallel` of MusicGen, arXiv 2306.05284). At a summed
position the decoder reads the sum of the G rows and a small network writes the codes one behind the other
(`model/depth_decoder.py`).

Documents, spans, the grammar and answers are rows in both layouts. Only what the decoder reads is *folded*: the rows
of a position become one.

    rows        <|image_start|> image_7 image.1_3 image_2 image.1_9 <|image_end|>
    positions   <|image_start|> (image_7, image.1_3) (image_2, image.1_9) <|image_end|>

Legend: N rows, P positions, G the most codes of a position, V rows of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

import numpy as np

from unimodal.vocabulary.layout import Block

#: one row of the vocabulary, or all rows that stand at a summed position
Position = int | tuple[int, ...]
NOTHING = -1  # in arrays of positions, in place of a code that a position does not have


class PositionMap:
    """The positions of a vocabulary's rows. width: G; 1 if every row has a position of its own."""

    def __init__(self, blocks: Iterable[Block], num_rows: int) -> None:
        self._place = np.zeros(num_rows, dtype=np.int16)  # [V] the place of a row within its position
        self._count = np.ones(num_rows, dtype=np.int16)  # [V] the codes of a position that holds the row
        self._owner = np.full(num_rows, NOTHING, dtype=np.int16)  # [V] the number of the row's summed block
        summed = [block for block in blocks if block.layout == "summed"]
        names = [block.name for block in summed]
        for block in summed:
            self._place[block.start : block.start + block.size] = block.group
            self._count[block.start : block.start + block.size] = names.count(block.name)
            self._owner[block.start : block.start + block.size] = names.index(block.name)
        self.width = int(self._count.max(initial=1))

    @property
    def is_flat(self) -> bool:
        """Whether every row has a position of its own."""
        return self.width == 1

    def count_codes(self, row: int) -> int:
        """The number of codes at a position that begins with this row."""
        return int(self._count[row])

    def count(self, rows: Sequence[int] | np.ndarray) -> int:
        """The number of positions of rows [N]; one whose last codes are missing counts."""
        if self.is_flat:
            return len(rows)
        return int((self._place[np.asarray(rows, dtype=np.int64)] == 0).sum()) if len(rows) else 0

    def fold(self, rows: Sequence[int]) -> tuple[list[Position], list[int]]:
        """Rows [N] → their positions, and the codes of a last position that is not complete.

        Raises ValueError for codes of a summed position out of their order.
        """
        if self.is_flat:
            return list(rows), []
        folded: list[Position] = []
        begun: list[int] = []
        for index, row in enumerate(rows):
            if self._place[row] != len(begun) or (begun and self._owner[row] != self._owner[begun[0]]):
                raise ValueError(
                    f"token {index} is row {row}, but place {len(begun)} of a summed position comes next; the codes of "
                    "a step stand together, in the order of their groups"
                )
            if self._count[row] == 1:
                folded.append(int(row))
                continue
            begun.append(int(row))
            if len(begun) == self._count[row]:
                folded.append(tuple(begun))
                begun = []
        return folded, begun

    def fold_array(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows int64 [N] → the index of each position's first row, int64 [P], and the other codes, int64 [P, G - 1].

        Codes that a position does not have are -1. Raises ValueError for positions that are not complete.
        """
        place = self._place[ids]
        first = np.flatnonzero(place == 0)  # [P]
        counts = np.diff(np.append(first, len(ids)))
        whole = len(first) and first[0] == 0 and np.array_equal(counts, self._count[ids[first]])
        numbers = np.arange(len(ids)) - np.repeat(first, counts) if whole else place
        owners = self._owner[ids]
        if len(ids) and not (
            whole and np.array_equal(numbers, place) and np.array_equal(owners, np.repeat(owners[first], counts))
        ):
            raise ValueError("the document holds codes of a summed position that are out of order or not complete")
        further = np.full((len(first), self.width - 1), NOTHING, dtype=np.int64)
        behind = np.flatnonzero(place > 0)
        further[np.repeat(np.arange(len(first)), counts)[behind], place[behind] - 1] = ids[behind]
        return first, further


def unfold(positions: Iterable[Position]) -> list[int]:
    """The inverse of `PositionMap.fold`: the rows of positions."""
    rows: list[int] = []
    for position in positions:
        rows.extend((position,) if isinstance(position, int) else position)
    return rows


def sum_blocks(blocks: Iterable[Block], media: Collection[str]) -> list[Block]:
    """The blocks, those of these media with the layout `summed`, the others `flat`.

    Raises ValueError for a medium without blocks, and for one whose tokenizer has a single group: nothing to sum.
    """
    found = list(blocks)
    for medium in media:
        own = [block for block in found if block.modality == medium]
        if not own:
            known = ", ".join(dict.fromkeys(block.modality for block in found)) or "no media"
            raise ValueError(f"summed names {medium!r}, but there are codes of {known} only")
        single = [one for one in own if not any(o.name == one.name and o.group for o in own)]
        if single:
            raise ValueError(
                f"summed names {medium!r}, whose block {single[0].name!r} has one code a step; leave it out"
            )
    return [replace(block, layout="summed" if block.modality in media else "flat") for block in found]

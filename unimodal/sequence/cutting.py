"""Cut documents that are longer than a row: at its end, or into several pieces, and never inside a medium.

A piece is a document of its own: its positions begin at 0, and nothing is predicted across the cut. Pieces without a
learnt token are left out. Legend: N tokens of a document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from unimodal.sequence.templates.own import IGNORE, Rendered, join_group
from unimodal.vocabulary import Vocabulary

LongRows = Literal["drop", "error", "truncate", "split"]


class RowFitter:
    """Turns a document into pieces that fit in a row of `longest` tokens.

    long_rows: a longer document is left out (`drop`, `error`), cut at the last allowed place that fits (`truncate`), or
    cut into as many pieces as it needs (`split`). A long document with media that are read through features is always
    left out, and so is a group of documents that one row of `row_length` tokens does not hold. mask_history: learn only
    the last answer of a document. Documents are folded first: their tokens are positions of the sequence
    (`Rendered.fold`). before: ids that each piece begins with, those of a soft prompt. They count in
    `row_length` and not in `longest`, and nothing is learnt of them.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        longest: int,
        long_rows: LongRows = "drop",
        mask_history: bool = False,
        row_length: int | None = None,
        before: Sequence[int] = (),
    ) -> None:
        self.before = tuple(before)
        self.longest, self.long_rows, self.mask_history = longest, long_rows, mask_history
        self.row_length = longest + len(self.before) if row_length is None else row_length
        self._positions = vocabulary.positions
        self._starts = [vocabulary.get_start_id(medium) for medium in vocabulary.media]
        self._ends = [vocabulary.get_end_id(medium) for medium in vocabulary.media]

    def __call__(self, document: Rendered) -> list[Rendered]:
        return [piece.put_before(self.before) for piece in self._cut(document)]

    def _cut(self, document: Rendered) -> list[Rendered]:
        document = document.fold(self._positions)
        if document.starts:
            pieces = document.split_group()
            if self.mask_history:
                pieces = [keep_last_answer(piece) for piece in pieces]
                document = replace(join_group(pieces), read=document.read)
            length = len(document) + len(pieces) * len(self.before)
            fits = length <= self.row_length and max(map(len, pieces)) <= self.longest
            return [document] if fits else []
        if self.mask_history:
            document = keep_last_answer(document)
        if len(document) <= self.longest:
            return [document]
        if self.long_rows in ("drop", "error") or document.read:
            return []
        pieces = []
        allowed = self._find_places(document)
        begin = 0
        while begin < len(document):
            last = int(np.searchsorted(allowed, begin + self.longest, "right")) - 1  # the last allowed place that fits
            end = int(allowed[last]) if last >= 0 else 0
            if end > begin:
                pieces.append(document[begin:end])
            else:  # a medium longer than a row: go on behind it
                end = int(allowed[last + 1])
            if self.long_rows == "truncate":
                break
            begin = end
        return [piece for piece in pieces if (piece.labels[1:] != IGNORE).any()]

    def _find_places(self, document: Rendered) -> np.ndarray:
        """The tokens before which a document may be cut, and its end: int64, ascending."""
        starts, ends = np.isin(document.ids, self._starts), np.isin(document.ids, self._ends)  # [N]
        depth: np.ndarray = np.cumsum(starts) - np.cumsum(ends)  # 1 from a start mark to before its end mark
        modality = document.modality
        inside = (modality[1:] > 0) & (modality[1:] == modality[:-1]) & ~starts[1:]  # some formats write no marks
        allowed = (depth[:-1] <= 0) & ~inside
        return np.append(np.flatnonzero(allowed) + 1, len(document))


def keep_last_answer(document: Rendered) -> Rendered:
    """The document with labels on its last run of learnt tokens only."""
    learnt = np.flatnonzero(document.labels != IGNORE)
    if not len(learnt):
        return document
    gaps = np.flatnonzero(np.diff(learnt) > 1)
    first = int(learnt[gaps[-1] + 1]) if len(gaps) else int(learnt[0])
    labels = document.labels.copy()
    labels[:first] = IGNORE
    return replace(document, labels=labels)

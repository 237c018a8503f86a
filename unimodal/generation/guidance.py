"""Classifier-free guidance: away from the logits of an unconditional prompt (arXiv:2207.12598).

A guided row runs as two streams of one batch: one with its prompt, one with the prompt without its text. Both are fed
the same new tokens. With conditional logits c and unconditional ones u, guided logits are u + scale * (c - u). The head
is linear, so this is computed on the last hidden states, and the head runs once per row instead of once per stream.
Guidance may be limited to an interval of a span's steps (arXiv:2404.07724); once no later token needs it, the second
stream is dropped.

Shapes: R rows, S streams, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def needs_guidance(guidance: Mapping[str, float], modalities: Sequence[str]) -> bool:
    """Whether a row that may write these modalities needs its unconditional stream; text is never guided."""
    return any(guidance.get(name, 1.0) != 1.0 for name in modalities if name != "text")


def combine(conditional: Tensor, unconditional: Tensor, scale: Tensor) -> Tensor:
    """u + scale * (c - u) for hidden states or logits [R, D] and scales [R, 1]; rows of scale 1 come back unchanged."""
    return torch.lerp(unconditional, conditional, scale.to(conditional.dtype))


class Streams:
    """The streams of a batch's rows: a conditional one for each row, then an unconditional one for each guided row."""

    def __init__(self, num_rows: int, guided_rows: Sequence[int]) -> None:
        self.row_of = [*range(num_rows), *guided_rows]  # [S]
        self._index()

    def _index(self) -> None:
        self.conditional: dict[int, int] = {}
        self.unconditional: dict[int, int] = {}
        for stream, row in enumerate(self.row_of):
            (self.unconditional if row in self.conditional else self.conditional)[row] = stream

    def __len__(self) -> int:
        return len(self.row_of)

    def add_rows(self, num_rows: int, guided: Sequence[int]) -> None:
        """Append rows and their streams. guided: numbers of the guided ones, counted among the new rows."""
        first = max(self.row_of, default=-1) + 1
        self.row_of += [*range(first, first + num_rows), *(first + row for row in guided)]
        self._index()

    def renumber_rows(self) -> None:
        """Number rows without the gaps that dropped ones have left."""
        number = {row: index for index, row in enumerate(sorted(set(self.row_of)))}
        self.row_of = [number[row] for row in self.row_of]
        self._index()

    def drop_rows(self, finished: Sequence[bool]) -> list[int]:
        """Drop the streams of finished rows; return the old indices of those that stay, in order."""
        kept = [stream for stream, row in enumerate(self.row_of) if not finished[row]]
        self.row_of = [self.row_of[stream] for stream in kept]
        self._index()
        return kept

    def drop_twins(self, rows: Sequence[int]) -> list[int]:
        """Drop the unconditional streams of these rows; return the old indices of those that stay, in order."""
        gone = {self.unconditional[row] for row in rows if row in self.unconditional}
        kept = [stream for stream in range(len(self)) if stream not in gone]
        self.row_of = [self.row_of[stream] for stream in kept]
        self._index()
        return kept

    def find_branches(self, rows: Sequence[int]) -> tuple[list[int], list[int]]:
        """The conditional and the unconditional stream of each row; the same stream if it has only one."""
        conditional = [self.conditional[row] for row in rows]
        return conditional, [self.unconditional.get(row, self.conditional[row]) for row in rows]

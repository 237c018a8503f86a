"""What a decoder is given in a call, and where its media lie: by our vocabulary, or by a model's own token ids.

Shapes: B rows, N tokens of a call, L tokens that were read, A axes of a position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from unimodal.compression.running.spans import LocatedSpan, TurnState, find_input_spans
from unimodal.vocabulary import Vocabulary


class AxisPositions(NamedTuple):
    """Positions on several axes (M-RoPE), int64 [A, B, N], of the tokens from number `first` on."""

    places: Tensor
    first: int


@dataclass(frozen=True, eq=False)
class CallInput:
    """The arguments of a call of a decoder.

    ids: int64 [B, N], or None. mask: [B, L], 0 for padding, or None. position_ids: int64 [B or 1, N], or None. axes:
    int64 [A, B, N], positions on several axes. blocks: int64 [B, N], numbers of blocks whose tokens see each other,
    -1 for tokens of none.
    """

    ids: Tensor | None
    mask: Tensor | None
    position_ids: Tensor | None
    axes: Tensor | None = None
    blocks: Tensor | None = None


class InputReader(Protocol):
    """Tells the executor what a decoder is given.

    has_axes: whether positions may lie on several axes.
    """

    has_axes: ClassVar[bool]

    def complete(self, given: CallInput) -> CallInput:
        """The arguments of a call, with what only the model around the decoder was given."""

    def find_spans(self, ids: Tensor, valid: Tensor, before: TurnState | None) -> tuple[list[LocatedSpan], TurnState]:
        """The spans of media in ids int64 [B, N], and the state behind them; valid bool [B, N]."""

    def find_words(self, ids: Tensor) -> Tensor:
        """Which ids are words, bool [B, N]."""

    def install(self) -> None:
        """Called when the first context of a decoder opens."""

    def remove(self) -> None:
        """Called when the last one closes."""


@dataclass(frozen=True, eq=False)
class VocabularyReader:
    """The reader of our own models, whose media lie between marks of the vocabulary."""

    has_axes: ClassVar[bool] = False
    vocabulary: Vocabulary

    def complete(self, given: CallInput) -> CallInput:
        return given

    def find_spans(self, ids: Tensor, valid: Tensor, before: TurnState | None) -> tuple[list[LocatedSpan], TurnState]:
        return find_input_spans(ids, valid, self.vocabulary, self.vocabulary.media, before)

    def find_words(self, ids: Tensor) -> Tensor:
        return (ids >= 0) & (ids < self.vocabulary.text_size)  # below 0 are those of a soft prompt

    def install(self) -> None:
        pass

    def remove(self) -> None:
        pass


def list_runs(ids: Tensor, valid: Tensor) -> list[list[tuple[int, int, int]]]:
    """For each row of ids int64 [B, N] its runs of one id: (id, first column, column behind the last)."""
    rows = []
    for tokens, real in zip(ids.tolist(), valid.tolist(), strict=True):
        runs: list[tuple[int, int, int]] = []
        for column, token in enumerate(tokens):
            if not real[column]:
                continue
            if runs and runs[-1][0] == token and runs[-1][2] == column:
                runs[-1] = (token, runs[-1][1], column + 1)
            else:
                runs.append((token, column, column + 1))
        rows.append(runs)
    return rows


def number_blocks(kinds: Tensor) -> Tensor:
    """kinds int64 [B, N], 0 for tokens of no block → the number of each run of equal others, -1 for 0."""
    begins = torch.ones_like(kinds, dtype=torch.bool)
    begins[:, 1:] = kinds[:, 1:] != kinds[:, :-1]
    return torch.where(kinds > 0, begins.long().cumsum(1), -1)

"""What a method of transplanting is given, and what it gives: each new row as a mixture of the base's rows.

Tokens of two tokenizers are the same where they spell the same bytes, whatever their files write for a space.

Shapes: N rows of the new tokenizer, V text rows of the base, D width, E width of a donor, A anchors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

from unimodal.text.reports.opened import OpenedTokenizer
from unimodal.tuning.transplant.hypernetwork import RowHypernetwork
from unimodal.tuning.transplant.pieces import decompose
from unimodal.tuning.transplant.word_vectors import WordVectors

Side = Literal["input", "output"]
#: how rows begin that a method says nothing about: at the mean of the base's rows, or drawn from the normal
#: distribution with their mean and deviation in each direction, or with those of all their numbers together
Filling = Literal["mean", "normal", "numbers"]


class RowMixture(Protocol):
    """Rows [N, D] of the new tokenizer as linear combinations of the base's [V, D]; rows of NaN are left out."""

    def apply(self, table: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class SparseMixture:
    """Weights of single rows: new row `rows[i]` (int64) has `weights[i]` of the base's row `columns[i]` (int64)."""

    num_rows: int
    rows: Tensor
    columns: Tensor
    weights: Tensor

    @classmethod
    def from_rows(cls, num_rows: int, given: Mapping[int, Mapping[int, float]]) -> SparseMixture:
        """given: new row → weight by row of the base; what is not there, or is empty, is left out."""
        entries = [(row, column, weight) for row, mixed in given.items() for column, weight in mixed.items()]
        rows, columns, weights = zip(*entries, strict=True) if entries else ((), (), ())
        index = torch.tensor([rows, columns], dtype=torch.int64).reshape(2, -1)
        return cls(num_rows, index[0], index[1], torch.tensor(weights, dtype=torch.float64))

    def apply(self, table: Tensor) -> Tensor:
        weights = self.weights.to(table.dtype)[:, None]
        mixed = torch.zeros(self.num_rows, table.shape[1], dtype=table.dtype)
        mixed.index_add_(0, self.rows, table[self.columns] * weights)
        given = torch.zeros(self.num_rows, dtype=torch.bool).index_fill_(0, self.rows, True)
        return mixed.masked_fill(~given[:, None], float("nan"))


@dataclass(frozen=True, eq=False)
class SimilarityMixture:
    """New row i as the mean of base rows `columns` [A], weighted by the products of `left[i]` with `right` [A, E].

    left [R, E] belongs to the new rows `rows` [R]. The weights of a row are divided by their sum, and are never laid
    out: the sums over the anchors come first.
    """

    num_rows: int
    rows: Tensor
    left: Tensor
    columns: Tensor
    right: Tensor

    def apply(self, table: Tensor) -> Tensor:
        left, right = self.left.double(), self.right.double()
        summed = left @ (right.T @ table[self.columns].double())  # [R, D]
        totals = left @ right.sum(0)  # [R]
        mixed = torch.full((self.num_rows, table.shape[1]), float("nan"), dtype=table.dtype)
        mixed[self.rows] = (summed / totals[:, None]).to(table.dtype)
        return mixed


@dataclass(frozen=True, eq=False)
class TransplantRequest:
    """The two tokenizers, and whatever else the methods read; each says in one line what it lacks."""

    old: OpenedTokenizer
    new: OpenedTokenizer
    #: new row → the base's row of the special token of the same name
    special: Mapping[int, int] = field(default_factory=dict)
    #: the base's rows of unknown text, of padding and of the start, those that it has
    unknown: Sequence[int] = ()
    #: side → the rows [N, E] that a model with the new tokenizer has of its tokens; NaN where it has none
    donor: Mapping[Side, Tensor] | None = None
    #: rows of shared tokens that a new one is written with, in the donor
    num_atoms: int = 64
    #: lines in the base's language and in the new one that say the same
    parallel: tuple[Sequence[str], Sequence[str]] | None = None
    #: words of both languages as vectors, and pairs of words that mean the same
    vectors: tuple[WordVectors, WordVectors] | None = None
    dictionary: Sequence[tuple[str, str]] | None = None
    #: texts → their meanings [n, E], by a model of sentences
    embed: Callable[[Sequence[str]], Tensor] | None = None
    #: a network that was trained for the base, and the base's rows on both sides [V, S, D]
    hypernetwork: RowHypernetwork | None = None
    base_rows: Tensor | None = None

    @cached_property
    def num_rows(self) -> int:
        """N: rows of the new tokenizer, those of its special tokens among them."""
        return self.new.text.size

    @cached_property
    def shared(self) -> dict[int, int]:
        """New row → the base's row that spells the same bytes."""
        by_bytes: dict[bytes, int] = {}
        for row, piece in sorted(self.old.spelled.items()):
            by_bytes.setdefault(piece, row)
        return {row: by_bytes[piece] for row, piece in self.new.spelled.items() if piece in by_bytes}

    @cached_property
    def unshared(self) -> list[int]:
        """The new rows that spell what no row of the base does."""
        return [row for row in sorted(self.new.spelled) if row not in self.shared]

    def decompose(self, piece: bytes) -> list[int]:
        """The base's rows that spell these bytes (`pieces.py`)."""
        return decompose(self.old, piece)

"""What an initialiser of new rows is given.

Shapes: V base rows, R new rows, D width, F features of a code, E width of a donor, A anchors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Donor:
    """The table of another model that has the new rows: these, and the rows of tokens that both models have."""

    rows: Tensor  # [R, E], one for each new row; NaN where the donor has none
    anchors: Tensor  # [A, E]
    anchor_rows: Tensor  # int64 [A]: the base's rows of the same tokens


@dataclass(frozen=True, eq=False)
class RowRequest:
    """One side (input or output) of the vocabulary: its base table, and what is known of the new rows."""

    table: Tensor  # [V, D]
    num_rows: int  # R; new row r is row V + r of the vocabulary
    #: codebook vectors [len(range), F] of the rows of a block, by vocabulary rows
    features: Mapping[range, Tensor] = field(default_factory=dict)
    #: base rows of the words that describe a new row, by vocabulary row
    words: Mapping[int, Sequence[int]] = field(default_factory=dict)
    donor: Donor | None = None
    seed: int = 0

    def list_used(self) -> Tensor:
        """The base rows that are not padding, float32 [≤ V, D]. ValueError for a table of zeros."""
        table = self.table.detach().float()
        used = table[table.abs().sum(1) > 0]
        if not len(used):
            raise ValueError("the base table has only zero rows; load its weights before adding rows")
        return used

    def make_generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def draw_noise(self, num_rows: int, width: int) -> Tensor:
        """Standard normal [num_rows, width], the same on every device."""
        return torch.randn(num_rows, width, generator=self.make_generator()).to(self.table.device)

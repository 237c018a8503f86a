"""The output head, computed for the rows that may come next and for no others.

Shapes: R rows of hidden states, K candidate rows of the vocabulary, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.generation.guidance import combine
from unimodal.generation.spans import Ranges
from unimodal.model.rows import ExtendedHead, head_rows

# Allowed rows this close to each other are computed in one slice, and those between them masked.
_GAP = 64


@dataclass(frozen=True, eq=False)
class Candidates:
    """The head for one set of allowed rows: slices to compute, their ids [K], and which of them are not allowed."""

    slices: tuple[range, ...]
    ids: Tensor
    banned: Tensor | None
    only: int | None  # the id, where there is no choice
    packed: list[Tensor] = field(default_factory=list)  # [D, K] of each slice, where a copy is kept

    def index_of(self, row: int) -> int:
        """Where a row of the vocabulary stands among the candidates; ValueError if it is not one."""
        offset = 0
        for piece in self.slices:
            if row in piece:
                return offset + row - piece.start
            offset += len(piece)
        raise ValueError(f"row {row} is not a candidate")


class SlicedHead:
    """The head of a causal LM. ``packed`` keeps transposed copies of the slices, which a processor reads twice as fast
    for a few rows; they go stale when the head's weights change."""

    def __init__(self, model: nn.Module, packed: bool = False) -> None:
        self.head = model.get_output_embeddings()
        extended = isinstance(self.head, ExtendedHead)
        self.rows_of = getattr(self.head, "logits_of", None)  # of a head that is no matrix, and no linear map
        self.num_rows = int(self.head.num_base + len(self.head.new_rows) if extended else self.head.out_features)
        self.sliceable = type(self.head) is nn.Linear or extended
        self.packed = packed and self.sliceable and getattr(self.head, "bias", None) is None
        self.device = next(model.parameters()).device
        self._made: dict[Ranges, Candidates] = {}

    def forget(self) -> None:
        """Drop what was copied from the weights."""
        self._made.clear()

    def candidates(self, ranges: Ranges) -> Candidates:
        """How to compute the head for these ranges; made once for each."""
        found = self._made.get(ranges)
        if found is not None:
            return found
        slices: list[range] = []
        for start, end in ranges:
            if slices and start - slices[-1].stop <= _GAP:
                slices[-1] = range(slices[-1].start, end)
            else:
                slices.append(range(start, end))
        ids = torch.cat([torch.arange(s.start, s.stop) for s in slices])
        allowed = torch.zeros(len(ids), dtype=torch.bool)
        for start, end in ranges:
            allowed |= (ids >= start) & (ids < end)
        only = int(ids[0]) if len(ids) == 1 else None
        banned = None if bool(allowed.all()) else ~allowed.to(self.device)
        packed = []
        if self.packed and only is None:
            packed = [head_rows(self.head, s).detach().float().t().contiguous() for s in slices]
        found = self._made[ranges] = Candidates(tuple(slices), ids.to(self.device), banned, only, packed)
        return found

    def logits(self, hidden: Tensor, candidates: Candidates) -> Tensor:
        """hidden [R, D] -> logits [R, K] over the candidates only."""
        if candidates.packed:
            parts = [torch.mm(hidden.float(), weight) for weight in candidates.packed]
            logits = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        elif self.sliceable:
            bias = getattr(self.head, "bias", None)
            parts = [
                F.linear(hidden, head_rows(self.head, s), None if bias is None else bias[s.start : s.stop])
                for s in candidates.slices
            ]
            logits = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        elif self.rows_of is not None:
            logits = torch.cat([self.rows_of(hidden, s) for s in candidates.slices], 1)
        else:  # a wrapped head (LoRA on it, say) is run whole
            logits = self.head(hidden)[:, candidates.ids]
        return logits if candidates.banned is None else logits.masked_fill(candidates.banned, -torch.inf)

    def guided_logits(self, hidden: Tensor, other: Tensor, scales: Tensor, candidates: Candidates) -> Tensor:
        """Logits [R, K] guided away from those of the unconditional states `other`; scales [R, 1].

        A linear head is run once, on the combined states.
        """
        if self.rows_of is None:
            return self.logits(combine(hidden, other, scales), candidates)
        logits = combine(self.logits(hidden, candidates), self.logits(other, candidates), scales)
        return logits if candidates.banned is None else logits.masked_fill(candidates.banned, -torch.inf)

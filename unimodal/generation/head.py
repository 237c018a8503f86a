"""The output head, computed only for the rows that may come next.

Shapes: R rows of hidden states, K candidate rows of the vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.generation.guidance import combine
from unimodal.generation.spans import Ranges
from unimodal.model.fourier_head import FourierRows, find_scoring_head
from unimodal.model.image_head import ImageHead
from unimodal.model.logits import PLAIN, read_logit_rule
from unimodal.model.rows import ExtendedHead, read_head_bias, read_head_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: (weight [k, D], bias [k] or None) → what multiplies hidden states float32 [R, D] by it: [R, k]
MakeProduct = Callable[[Tensor, Tensor | None], Callable[[Tensor], Tensor]]

#: address and version of each of some parameters
WeightState = tuple[tuple[int, int], ...]


def read_weight_state(parameters: Iterable[nn.Parameter]) -> WeightState:
    """The state by which a copy of weights knows that they have changed: it stays equal until one is written to.

    Writes to inference tensors are not seen.
    """
    return tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters)


# Allowed rows this close to each other are computed in one slice; rows between them are masked.
_GAP = 64


@dataclass(frozen=True, eq=False)
class Candidates:
    """The head for one set of allowed rows: slices to compute, their ids int64 [K], and which are banned, bool [K]."""

    slices: tuple[range, ...]
    ids: Tensor
    banned: Tensor | None
    only: int | None  # the id, if only one row is allowed
    packed: list[Callable[[Tensor], Tensor]] = field(
        default_factory=list
    )  # products with copies of the slices, or none

    def find_index(self, row: int) -> int:
        """The index of a row of the vocabulary among the candidates. Raises ValueError if it is not one."""
        offset = 0
        for piece in self.slices:
            if row in piece:
                return offset + row - piece.start
            offset += len(piece)
        raise ValueError(f"row {row} is not a candidate")


class SlicedHead:
    """The head of a causal LM, computed for some of its rows.

    A plain or extended matrix is read in slices, an `ImageHead` and Fourier heads score rows themselves, and any other
    head (one wrapped by LoRA, say) is run whole. make_product: (weight [k, D], bias [k] or None) → their product with
    hidden states; then slices are read as packed copies, and `forget` is to be called when the head's weights change.
    Logits are scaled and capped as the model does it (`unimodal.model.logits`).
    """

    def __init__(self, model: PreTrainedModel, make_product: MakeProduct | None = None) -> None:
        self.head: nn.Module = model.get_output_embeddings()
        scoring = find_scoring_head(model)
        self.fourier = scoring if isinstance(scoring, FourierRows) else None  # its logits are final
        self.rule = read_logit_rule(model) if self.fourier is None else PLAIN
        extended = isinstance(self.head, ExtendedHead)
        self.num_rows = self.head.num_rows if extended else int(self.head.out_features)
        self.sliceable = self.fourier is None and (type(self.head) is nn.Linear or extended)
        self.make_product = make_product if self.sliceable else None
        self.device = next(model.parameters()).device
        self._made: dict[Ranges, Candidates] = {}

    def forget(self) -> None:
        """Drop what was copied from the weights."""
        self._made.clear()

    def select(self, ranges: Ranges) -> Candidates:
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
        if self.make_product is not None and only is None:
            read = [(read_head_rows(self.head, s).detach(), read_head_bias(self.head, s)) for s in slices]
            packed = [self.make_product(rows, None if bias is None else bias.detach()) for rows, bias in read]
        found = self._made[ranges] = Candidates(tuple(slices), ids.to(self.device), banned, only, packed)
        return found

    def compute_logits(self, hidden: Tensor, candidates: Candidates, head: nn.Module | None = None) -> Tensor:
        """hidden [R, D] -> logits [R, K] over the candidates only, -inf for banned ones.

        head: a plain matrix of the same rows in place of the model's own.
        """
        if head is not None:
            logits = _join([F.linear(hidden, read_head_rows(head, s)) for s in candidates.slices])
        elif candidates.packed:
            logits = _join([product(hidden.float()) for product in candidates.packed])
        elif self.sliceable:
            logits = _join(
                [
                    F.linear(hidden, read_head_rows(self.head, s), read_head_bias(self.head, s))
                    for s in candidates.slices
                ]
            )
        elif self.fourier is not None:
            logits = self.fourier.score(hidden, list(candidates.slices))[0]
        elif isinstance(self.head, ImageHead):
            logits = _join([self.head.compute_logits(hidden, s) for s in candidates.slices])
        else:
            logits = self.head(hidden)[:, candidates.ids]
        logits = self.rule.apply(logits)
        return logits if candidates.banned is None else logits.masked_fill(candidates.banned, -torch.inf)

    def score(self, hidden: Tensor, ids: Sequence[int], allowed: Sequence[Ranges]) -> tuple[Tensor, Tensor]:
        """The log-probability [R] of each id from its state hidden [R, D], by the softmax over its allowed rows, and
        whether none of these is likelier, bool [R]."""
        logs = hidden.new_zeros(len(ids), dtype=torch.float32)
        best = torch.ones_like(logs, dtype=torch.bool)
        for ranges in set(allowed):
            candidates = self.select(ranges)
            if candidates.only is not None:
                continue
            places = [place for place, rows in enumerate(allowed) if rows == ranges]
            found = self.compute_logits(hidden[places], candidates).float().log_softmax(1)  # [k, K]
            own = torch.tensor([ids[place] for place in places], device=found.device)[:, None]
            at = (candidates.ids == own).int().argmax(1, keepdim=True)
            logs[places] = found.gather(1, at)[:, 0]
            best[places] = logs[places] >= found.max(1).values
        return logs, best

    def compute_guided_logits(
        self, hidden: Tensor, other: Tensor, scales: Tensor, candidates: Candidates, head: nn.Module | None = None
    ) -> Tensor:
        """Guided logits [R, K] from conditional states hidden and unconditional ones other, both [R, D].

        scales: [R, 1]. head: as in `compute_logits`. A linear head is run once, on the combined states.
        """
        if self.fourier is None and not isinstance(self.head, ImageHead) and self.rule.cap is None:
            return self.compute_logits(combine(hidden, other, scales), candidates, head)
        own, unconditional = (self.compute_logits(states, candidates, head) for states in (hidden, other))
        logits = combine(own, unconditional, scales)
        return logits if candidates.banned is None else logits.masked_fill(candidates.banned, -torch.inf)


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

"""Copies of a span's places behind the row: what is asked beside what is read, as XLNet's two streams in one sequence.

The codes of a span are read at their places, and each is asked for by a copy of its place that stands at the end of the
row, with the same position: a mask, or a noisy code. A copy sees its document before the span, and of the span what its
rank allows; nothing sees a copy but other copies of its rank. So one pass gives the prediction of every code from a
chosen subset of the others, and what is read is not touched by what is asked.

Shapes: B rows, N tokens, Q copies of a row, L codes of a span, M copies of a span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unimodal.objectives.next_token import IGNORE, TokenLosses, shift_labels
from unimodal.objectives.objective import number_documents
from unimodal.objectives.spans import LearntSpan, SpanObjective, list_seen


@dataclass(frozen=True)
class Copies:
    """The copies of a span. places: int64 [M], which of its codes they ask for. ids: int64 [M], what they read.

    sees: bool [M, L], the codes of the span that each sees. together: bool [M, M], the copies that each sees.
    """

    places: Tensor
    ids: Tensor
    sees: Tensor
    together: Tensor


@dataclass(frozen=True)
class CopiedBatch:
    """A batch with its copies: ids, position_ids and targets (own ids, IGNORE for none) [B, N + Q], seen [B, …, …]."""

    ids: Tensor
    position_ids: Tensor
    targets: Tensor
    seen: Tensor


def add_copies(
    ids: Tensor, position_ids: Tensor, spans: Sequence[LearntSpan], patterns: Sequence[Tensor], copies: Sequence[Copies]
) -> CopiedBatch:
    """Put the copies of the spans behind their rows.

    patterns: bool [L, L] of each span, what each of its codes sees of them. Padding behind a row's last copy sees
    itself.
    """
    num, length = ids.shape
    used = [0] * num
    starts = []
    for span, own in zip(spans, copies, strict=True):
        starts.append(length + used[span.row])
        used[span.row] += len(own.places)
    whole = length + max(used, default=0)
    documents = number_documents(position_ids).view_as(ids)
    longer = ids.new_zeros(num, whole)
    longer[:, :length] = ids
    positions = torch.zeros_like(longer)
    positions[:, :length] = position_ids
    targets = torch.full_like(longer, IGNORE)
    seen = torch.eye(whole, dtype=torch.bool, device=ids.device).repeat(num, 1, 1)
    seen[:, :length, :length] = list_seen(position_ids, spans, patterns)
    columns = torch.arange(length, device=ids.device)
    for span, own, start in zip(spans, copies, starts, strict=True):
        row, first, stop = span.row, int(span.places[0]), start + len(own.places)
        at = span.places[own.places.to(ids.device)]
        longer[row, start:stop] = own.ids.to(ids.device)
        positions[row, start:stop] = position_ids[row, at]
        targets[row, start:stop] = ids[row, at]
        seen[row, start:stop, :length] = (documents[row] == documents[row, first]) & (columns < first)
        seen[row, start:stop, span.places] = own.sees.to(ids.device)
        seen[row, start:stop, start:stop] = own.together.to(ids.device)
    return CopiedBatch(longer, positions, targets, seen)


class CopiesObjective(SpanObjective):
    """The base class of objectives that ask by copies."""

    def score_copies(
        self,
        ids: Tensor,
        position_ids: Tensor,
        learnt: Tensor,
        spans: Sequence[LearntSpan],
        patterns: Sequence[Tensor],
        copies: Sequence[Copies],
    ) -> tuple[TokenLosses, Tensor]:
        """The losses [P] of the labels `learnt` [B, N], at the place before, and of the copies; which are of copies,
        bool [P]. The others as of `add_copies`.
        """
        streams = add_copies(ids, position_ids, spans, patterns, copies)
        states = self.run_seen(streams.ids, streams.position_ids, streams.seen)
        streams.targets[:, : ids.shape[1]] = shift_labels(learnt, position_ids)
        losses = self.score(self.model, states, streams.ids, streams.targets)
        return losses, losses.where % streams.ids.shape[1] >= ids.shape[1]

"""Next-token loss whose head is computed only where it is needed, over the rows that the grammar would allow there.

A media code can only be followed by what its span permits, so the softmax at a labelled media position runs over that
block's rows, not over the whole vocabulary; positions without a label never meet the head at all. With 20,000 rows and
blocks of 4,096 this leaves a fifth of the head's work, and training and decoding see the same distribution.

A span of free length (audio) decides at every code whether to stop: its end marker belongs to the block's softmax,
both as an alternative to every code and as a label.

Shapes: B batch, N tokens, D width, V rows, P labelled positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.model.rows import head_rows
from unimodal.vocabulary import Vocabulary

IGNORE = -100


@dataclass(frozen=True)
class HeadGroup:
    """Rows that share one softmax: the contiguous ``rows`` and, in a span of free length, the ``exits`` that end it.

    An exit is scored here when the token before it lies in ``exit_after``, elsewhere among the text and control rows.
    """

    name: str
    modality: str
    rows: range
    exits: tuple[int, ...] = ()
    exit_after: range = range(0)


class HeadGroups:
    """Assigns every label to the softmax in which it is scored."""

    def __init__(self, groups: Sequence[HeadGroup], vocab_size: int) -> None:
        self.groups = tuple(groups)
        self.vocab_size = vocab_size
        self.group_of_row = torch.full((vocab_size,), -1, dtype=torch.int64)  # [V]
        self.start_of_row = torch.zeros(vocab_size, dtype=torch.int64)  # [V] first row of the row's group
        for g, group in enumerate(self.groups):
            if group.rows.step != 1 or group.rows.start < 0 or group.rows.stop > vocab_size:
                raise ValueError(f"rows {group.rows} of {group.name!r} do not lie in a vocabulary of {vocab_size}")
            self.group_of_row[group.rows.start : group.rows.stop] = g
            self.start_of_row[group.rows.start : group.rows.stop] = group.rows.start

    @classmethod
    def from_vocabulary(cls, vocabulary: Vocabulary) -> HeadGroups:
        """Text and control rows form one group and every block one more."""
        exits: dict[str, list[int]] = {}
        for layout in vocabulary.layouts:
            for i, segment in enumerate(layout.segments):
                if segment.count is None:
                    last = i == len(layout.segments) - 1
                    mark = vocabulary.end_id(layout.modality) if last else vocabulary.control_id("<|frame|>")
                    exits.setdefault(segment.block, []).append(mark)
        groups = [HeadGroup("text", "text", range(vocabulary.control_range.stop))]
        for block in vocabulary.blocks:
            marks = sorted(set(exits.get(block.name, ()))) if block.group == 0 else []
            after = vocabulary.group_blocks(block.name)[-1].rows if marks else range(0)
            groups.append(HeadGroup(block.label, block.modality, block.rows, tuple(marks), after))
        return cls(groups, vocabulary.size)

    def assign(self, targets: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """targets [P] and the tokens before them [P] -> (index of the group, index within its softmax), both [P]."""
        group = self.group_of_row.to(targets.device)[targets]
        index = targets - self.start_of_row.to(targets.device)[targets]
        for g, spec in enumerate(self.groups):
            if not spec.exits:
                continue
            after = (previous >= spec.exit_after.start) & (previous < spec.exit_after.stop)
            for i, row in enumerate(spec.exits):
                leaves = after & (targets == row)
                group = torch.where(leaves, g, group)
                index = torch.where(leaves, len(spec.rows) + i, index)
        return group, index


@dataclass
class SlicedLoss:
    """``total`` is what to differentiate, divided by ``weight`` (both sums over labelled positions).

    ``per_block`` maps a group's name to (summed cross-entropy without weights or z-loss, count), detached.
    """

    total: Tensor
    weight: float
    count: int
    per_block: dict[str, tuple[float, int]] = field(default_factory=dict)

    @property
    def mean(self) -> Tensor:
        return self.total / max(self.weight, 1e-12)


def shift_labels(labels: Tensor, position_ids: Tensor | None) -> Tensor:
    """Turn labels aligned with the tokens, [B, N], into targets for the step before, [B, N] (last column ignored).

    The first token of a packed document (position 0) is no target: the step before it belongs to another document.
    """
    targets = torch.full_like(labels, IGNORE)
    targets[:, :-1] = labels[:, 1:]
    if position_ids is not None:
        targets[:, :-1].masked_fill_(position_ids.expand_as(labels)[:, 1:] == 0, IGNORE)
    return targets


def sliced_cross_entropy(
    model: nn.Module,
    ids: Tensor,
    labels: Tensor,
    groups: HeadGroups,
    *,
    position_ids: Tensor | None = None,
    z_loss: float = 0.0,
    modality_weights: Mapping[str, float] | None = None,
    **backbone_kwargs: Any,
) -> SlicedLoss:
    """Run the backbone once on ``ids`` [B, N] and the head only on labelled positions and their group's rows.

    labels [B, N] are aligned with ids (-100: not scored). ``backbone_kwargs`` go to the backbone (the attention mask or
    the packing of attention.py). ``z_loss`` adds z_loss * logsumexp^2 per position; ``modality_weights`` scales a
    modality's positions in both sums (default 1).
    """
    backbone = model.get_decoder()
    hidden = backbone(input_ids=ids, position_ids=position_ids, use_cache=False, **backbone_kwargs).last_hidden_state
    return cross_entropy_from_hidden(
        hidden,
        ids,
        shift_labels(labels, position_ids),
        model.get_output_embeddings(),
        groups,
        z_loss=z_loss,
        modality_weights=modality_weights,
    )


def cross_entropy_from_hidden(
    hidden: Tensor,
    ids: Tensor,
    targets: Tensor,
    head: nn.Module,
    groups: HeadGroups,
    *,
    z_loss: float = 0.0,
    modality_weights: Mapping[str, float] | None = None,
) -> SlicedLoss:
    """The head and the loss for hidden states [B, N, D] at tokens [B, N] with already shifted targets [B, N]."""
    flat_hidden = hidden.reshape(-1, hidden.shape[-1])  # [B*N, D]
    flat_targets = targets.reshape(-1)
    where = (flat_targets != IGNORE).nonzero().squeeze(1)  # [P]
    target = flat_targets[where]
    if where.numel() and (int(target.min()) < 0 or int(target.max()) >= groups.vocab_size):
        raise ValueError(f"a label lies outside the vocabulary of {groups.vocab_size} rows")
    group, index = groups.assign(target, ids.reshape(-1)[where])
    total = hidden.sum() * 0.0  # keeps the graph: backward() of a batch without labels gives zeros, not an error
    weight, count = 0.0, 0
    per_block: dict[str, tuple[float, int]] = {}
    for g in group.unique().tolist():
        if g < 0:
            raise ValueError(f"label {int(target[group < 0][0])} belongs to no block of the vocabulary")
        spec = groups.groups[g]
        chosen = (group == g).nonzero().squeeze(1)
        selected = flat_hidden.index_select(0, where[chosen])  # [P, D]
        logits = F.linear(selected, head_rows(head, spec.rows, spec.exits))  # [P, rows]
        logits = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        summed = F.cross_entropy(logits, index[chosen], reduction="sum")
        factor = 1.0 if modality_weights is None else float(modality_weights.get(spec.modality, 1.0))
        loss = summed
        if z_loss:
            loss = loss + z_loss * logits.logsumexp(-1).square().sum()
        total = total + factor * loss
        num = int(chosen.numel())
        weight += factor * num
        count += num
        per_block[spec.name] = (float(summed.detach()), num)
    return SlicedLoss(total, weight, count, per_block)

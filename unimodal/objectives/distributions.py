"""Whole distributions at labelled tokens, for objectives that compare models by more than the label.

The rows of a labelled token are those of its softmax (`next_token.HeadGroups`), the same for every model that shares
the vocabulary. Logits exist for one chunk of positions at a time; where a chunk is differentiated it is computed again
in the backward pass, so that nothing of its size is kept.

Shapes: B rows, N tokens, P labelled tokens, c positions of a chunk, K rows of its softmax, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from unimodal.model.fourier_head import FourierRows, find_scoring_head
from unimodal.model.image_head import ImageHead
from unimodal.model.logits import read_logit_rule
from unimodal.model.rows import read_head_bias, select_head_parts
from unimodal.objectives.next_token import IGNORE, HeadGroups, LossConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class LabelledTokens:
    """The P labelled tokens of a batch.

    where: places among the B * N flattened tokens. label: their targets. group: index of each one's softmax. index: of
    the label within it. All int64 [P].
    """

    where: Tensor
    label: Tensor
    group: Tensor
    index: Tensor


@dataclass
class Chunk:
    """Some labelled tokens of one softmax. places: which of the P, int64 [c]. rows: of the vocabulary."""

    places: Tensor
    rows: tuple[range, ...]


def find_labelled(ids: Tensor, targets: Tensor, groups: HeadGroups) -> LabelledTokens:
    """ids and targets (`shift_labels`), each [B, N]."""
    flat = targets.reshape(-1)
    where = (flat != IGNORE).nonzero().squeeze(1)
    group, index = groups.assign(flat[where], ids.reshape(-1)[where])
    return LabelledTokens(where, flat[where], group, index)


def list_chunks(tokens: LabelledTokens, groups: HeadGroups, cfg: LossConfig) -> Iterator[Chunk]:
    """The labelled tokens, chunk by chunk: every token once."""
    if cfg.softmax == "joint":
        tokens.index.copy_(tokens.label)
        found = [(torch.arange(len(tokens.where), device=tokens.where.device), (range(groups.vocab_size),))]
    else:
        found = []
        for number in tokens.group.unique().tolist():
            spec = groups.groups[number]
            rows = (*spec.pieces, *(range(row, row + 1) for row in spec.exits))
            found.append(((tokens.group == number).nonzero().squeeze(1), rows))
    for places, rows in found:
        for part in places.split(max(1, cfg.max_logits // max(1, sum(map(len, rows))))):
            yield Chunk(part, rows)


def compute_logits(model: PreTrainedModel, states: Tensor, rows: Sequence[range]) -> Tensor:
    """States [c, D] → the model's own logits over these rows, float32 [c, K]."""
    head, pieces = find_scoring_head(model), []
    if isinstance(head, FourierRows):
        return head.score(states, list(rows))[0]
    for piece in rows:
        if isinstance(head, ImageHead):
            selected, parts = head.split_linear(states, [piece])
            pieces += [F.linear(selected, part.to(selected.dtype)) for part in parts]
            continue
        found = torch.cat([F.linear(states, part.to(states.dtype)) for part in select_head_parts(head, piece)], 1)
        bias = read_head_bias(head, piece)
        pieces.append(found if bias is None else found + bias.to(found.dtype))
    return read_logit_rule(model).apply(torch.cat(pieces, 1).float())


def differentiate_chunk(
    function: Callable[[Tensor], Tensor], model: PreTrainedModel, states: Tensor, rows: Sequence[range]
) -> Tensor:
    """function(logits [c, K]) → [c], with gradients to the states [c, D] and the head; the logits are not kept."""

    def run(kept: Tensor) -> Tensor:
        return function(compute_logits(model, kept, rows))

    if not torch.is_grad_enabled():
        return run(states)
    found = checkpoint(run, states, use_reentrant=False)
    assert isinstance(found, Tensor)
    return found

"""Next-token loss whose head is computed at labelled positions only, over the rows that the grammar allows there.

A media code can only be followed by what its span permits, so the softmax at a labelled media position runs over that
block's rows, not over the whole vocabulary; the head skips positions without a label. With 20,000 rows and blocks of
4,096 this leaves a fifth of the head's work, and training and decoding see the same distribution.

The logits never exist all at once (`cross_entropy.py`). ``softmax="joint"`` scores every label among all rows instead.

A span of free length (audio) decides at every code whether to stop: its end marker belongs to the block's softmax,
both as an alternative to every code and as a label.

Shapes: B batch, N tokens, D width, V rows, P labelled positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from unimodal.config import MAY_CHANGE, Config
from unimodal.media.registry import find_medium
from unimodal.model.fourier_head import FourierRows, find_scoring_head
from unimodal.model.image_head import ImageHead
from unimodal.model.logits import PLAIN, LogitRule, read_logit_rule
from unimodal.model.rows import cut_head, select_head_biases
from unimodal.objectives.cross_entropy import MAX_LOGITS, compute_chunked_cross_entropy
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORE = -100


class LossConfig(Config):
    """How much a labelled position counts, and among which rows it is scored."""

    z_loss: float = Field(default=0.0, ge=0)  # times the squared log-sum-exp (PaLM, arXiv 2204.02311)
    modality_weights: dict[str, Annotated[float, Field(ge=0)]] = {}  # by medium or "text"; 1 where not given
    softmax: Literal["block", "joint"] = "block"  # over the rows that the grammar allows, or over all
    #: elements of the head's output that exist at a time
    max_logits: Annotated[int, MAY_CHANGE] = Field(default=MAX_LOGITS, gt=0)
    #: share of the labelled tokens to learn from (token_selection.py); below 1 a copy of all that is trained is kept
    keep_share: float = Field(default=1.0, gt=0, le=1)
    #: weight of the fall in loss within a token's score; the rest is the weight of its attention to the prompt
    loss_share: float = Field(default=0.5, ge=0, le=1)

    @field_validator("modality_weights")
    @classmethod
    def _check_names(cls, weights: dict[str, float]) -> dict[str, float]:
        for name in weights:
            if name != "text":
                find_medium(name)
        return weights


@dataclass(frozen=True)
class HeadGroup:
    """Rows that share one softmax: ``rows``, ``more`` and, in a span of free length, the ``exits`` that end it.

    An exit is scored in this group if the token before it lies in ``exit_after``, else among text and control rows.
    """

    name: str
    modality: str
    rows: range
    exits: tuple[int, ...] = ()
    exit_after: range = range(0)
    more: tuple[range, ...] = ()

    @property
    def pieces(self) -> tuple[range, ...]:
        return (self.rows, *self.more)


class HeadGroups:
    """Assigns every label to the softmax in which it is scored."""

    def __init__(self, groups: Sequence[HeadGroup], vocab_size: int) -> None:
        self.groups = tuple(groups)
        self.vocab_size = vocab_size
        self.group_of_row = torch.full((vocab_size,), -1, dtype=torch.int64)  # [V]
        self.index_of_row = torch.zeros(vocab_size, dtype=torch.int64)  # [V] place of the row within its group
        for g, group in enumerate(self.groups):
            before = 0
            for rows in group.pieces:
                if rows.step != 1 or rows.start < 0 or rows.stop > vocab_size:
                    raise ValueError(f"rows {rows} of {group.name!r} do not lie in a vocabulary of {vocab_size}")
                self.group_of_row[rows.start : rows.stop] = g
                self.index_of_row[rows.start : rows.stop] = torch.arange(before, before + len(rows))
                before += len(rows)

    @classmethod
    def from_vocabulary(cls, vocabulary: Vocabulary) -> HeadGroups:
        """A group for each block, and one for all other rows (text and controls)."""
        exits: dict[str, list[int]] = {}
        leaders: dict[str, int] = {}  # of blocks in the order of a pattern: the group in whose place the mark stands
        for layout in vocabulary.layouts:
            for i, segment in enumerate(layout.segments):
                if segment.count is None:
                    last = i == len(layout.segments) - 1 and layout.pattern is None
                    if layout.pattern is not None:
                        leaders[segment.block] = layout.pattern.leader
                    mark = vocabulary.get_end_id(layout.modality) if last else vocabulary.get_control_id("<|frame|>")
                    exits.setdefault(segment.block, []).append(mark)
        rest, at = [], 0
        for block in sorted(vocabulary.blocks, key=lambda block: block.start):
            rest += [range(at, block.start)] if block.start > at else []
            at = block.start + block.size
        rest += [range(at, vocabulary.size)] if vocabulary.size > at else []
        groups = [HeadGroup("text", "text", rest[0], more=tuple(rest[1:]))]
        for block in vocabulary.blocks:
            marks = sorted(set(exits.get(block.name, ()))) if block.group == leaders.get(block.name, 0) else []
            own = vocabulary.group_blocks(block.name)
            before = own[0 if block.layout == "summed" else -1]
            after = before.rows if marks else range(0)  # a summed position is known by its first row
            if marks and block.name in leaders:  # any group may be written before the mark
                after = range(own[0].start, own[-1].start + own[-1].size)
            groups.append(HeadGroup(block.label, block.modality, block.rows, tuple(marks), after))
        return cls(groups, vocabulary.size)

    def assign(self, targets: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """targets [P] and the tokens before them [P] -> (index of the group, index within its softmax), both [P]."""
        group = self.group_of_row.to(targets.device)[targets]
        index = self.index_of_row.to(targets.device)[targets]
        for g, spec in enumerate(self.groups):
            if not spec.exits:
                continue
            after = (previous >= spec.exit_after.start) & (previous < spec.exit_after.stop)
            for i, row in enumerate(spec.exits):
                leaves = after & (targets == row)
                group = torch.where(leaves, g, group)
                index = torch.where(leaves, sum(map(len, spec.pieces)) + i, index)
        return group, index


@dataclass
class SlicedLoss:
    """A loss summed over the labelled positions. Differentiate ``total / weight``, the mean.

    weight: the summed weights of the positions; count: their number. per_block: name of a group → (summed cross-entropy
    in nats without weights or z-loss, number of positions), detached.
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


def compute_sliced_cross_entropy(
    model: PreTrainedModel,
    ids: Tensor,
    labels: Tensor,
    groups: HeadGroups,
    *,
    position_ids: Tensor | None = None,
    z_loss: float = 0.0,
    modality_weights: Mapping[str, float] | None = None,
    softmax: str = "block",
    **backbone_kwargs: object,
) -> SlicedLoss:
    """Run the backbone once on ``ids`` [B, N], and the head only at labelled positions over their group's rows.

    labels [B, N] are aligned with ids (-100: not scored). z_loss: adds z_loss * logsumexp^2 at each position.
    modality_weights: factor of a modality's positions in both sums, by default 1. backbone_kwargs go to the backbone:
    the attention mask, or the packing of `attention.py`.
    """
    backbone = model.get_decoder()
    hidden = backbone(input_ids=ids, position_ids=position_ids, use_cache=False, **backbone_kwargs).last_hidden_state
    return compute_cross_entropy(
        hidden,
        ids,
        shift_labels(labels, position_ids),
        find_scoring_head(model),
        groups,
        z_loss=z_loss,
        modality_weights=modality_weights,
        softmax=softmax,
        rule=read_logit_rule(model),
    )


@dataclass
class TokenLosses:
    """The losses of the P labelled positions, before they are weighted and summed.

    loss, lse [P]: cross-entropy and log-sum-exp, differentiable. where: int64 [P], places among the B*N flattened
    tokens. group: int64 [P], index of the label's group, which also names its modality. penalty: what a head adds, [P].
    """

    loss: Tensor
    lse: Tensor
    where: Tensor
    group: Tensor
    groups: HeadGroups
    penalty: Tensor | None = None

    def join(self, others: TokenLosses) -> TokenLosses:
        """These losses and others of the same batch."""
        parts = [(one.loss, one.lse, one.where, one.group) for one in (self, others)]
        loss, lse, where, group = (torch.cat(pair) for pair in zip(*parts, strict=True))
        assert self.penalty is None and others.penalty is None, "Fourier heads score no summed positions"
        return TokenLosses(loss, lse, where, group, self.groups)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.where)

    def select(self, chosen: Tensor) -> TokenLosses:
        """Those of bool [P]."""
        return TokenLosses(self.loss[chosen], self.lse[chosen], self.where[chosen], self.group[chosen], self.groups)

    def reduce(
        self,
        z_loss: float = 0.0,
        modality_weights: Mapping[str, float] | None = None,
        token_weights: Tensor | None = None,
    ) -> SlicedLoss:
        """Sum over the positions. modality_weights, token_weights [P]: factors of a position in both sums."""
        given = modality_weights or {}
        factors = [float(given.get(group.modality, 1.0)) for group in self.groups.groups]
        weight = torch.tensor(factors, dtype=self.loss.dtype, device=self.loss.device)[self.group]
        if token_weights is not None:
            weight = weight * token_weights.to(weight.dtype)
        loss = self.loss + z_loss * self.lse.square() if z_loss else self.loss
        loss = loss if self.penalty is None else loss + self.penalty.to(loss.dtype)
        sums = torch.zeros(2, len(factors), dtype=torch.float64, device=weight.device)
        sums[0].index_add_(0, self.group, self.loss.detach().double())
        sums[1].index_add_(0, self.group, torch.ones_like(self.loss, dtype=torch.float64))
        summed, counts = sums.tolist()
        per_block = {
            g.name: (total, int(count))
            for g, total, count in zip(self.groups.groups, summed, counts, strict=True)
            if count
        }
        return SlicedLoss((weight * loss).sum(), float(weight.double().sum()), len(self.where), per_block)


class _GroupPlan(NamedTuple):
    """What one softmax scores: which labels, int64 [p] of P, their places among its rows [p], and these rows."""

    chosen: Tensor
    places: Tensor
    rows: list[range]


def _plan_groups(groups: HeadGroups, group: Tensor, index: Tensor, target: Tensor, softmax: str) -> list[_GroupPlan]:
    """group, index, target [P] of the labels: of `HeadGroups.assign`, and their rows."""
    if softmax == "joint" and len(target):
        return [_GroupPlan(torch.arange(len(target), device=target.device), target, [range(groups.vocab_size)])]
    plans = []
    for g in group.unique().tolist():
        spec, chosen = groups.groups[g], (group == g).nonzero().squeeze(1)
        rows = [*spec.pieces, *(range(row, row + 1) for row in spec.exits)]
        plans.append(_GroupPlan(chosen, index[chosen], rows))
    return plans


def compute_token_losses(
    hidden: Tensor,
    ids: Tensor,
    targets: Tensor,
    head: nn.Module | FourierRows,
    groups: HeadGroups,
    softmax: str = "block",
    max_logits: int = MAX_LOGITS,
    rule: LogitRule = PLAIN,
) -> TokenLosses:
    """Losses at hidden states [B, N, D] of tokens ``ids`` [B, N], for targets [B, N] of `shift_labels`.

    head: of `find_scoring_head`. max_logits: elements of the head's output at a time. rule: what the model does to the
    head's products (`read_logit_rule`). Raises ValueError for an unknown softmax and for a label that is in no group.
    """
    flat_hidden = hidden.reshape(-1, hidden.shape[-1])  # [B*N, D]
    flat_targets = targets.reshape(-1)
    where = (flat_targets != IGNORE).nonzero().squeeze(1)  # [P]
    target = flat_targets[where]
    if where.numel() and (int(target.min()) < 0 or int(target.max()) >= groups.vocab_size):
        raise ValueError(f"a label lies outside the vocabulary of {groups.vocab_size} rows")
    group, index = groups.assign(target, ids.reshape(-1)[where])
    if bool((group < 0).any()):
        raise ValueError(f"label {int(target[group < 0][0])} belongs to no block of the vocabulary")
    if isinstance(head, FourierRows) and softmax == "joint":
        raise ValueError("Fourier heads score the codes of their blocks apart; leave loss.softmax at 'block'")
    matrix = head.base if isinstance(head, FourierRows) else head
    plans = _plan_groups(groups, group, index, target, softmax)
    by_rows = [not (isinstance(head, FourierRows) and any(map(head.covers, plan.rows))) for plan in plans]
    cut = iter(()) if isinstance(matrix, ImageHead) else iter(
        cut_head(matrix, [piece for plan, plain in zip(plans, by_rows, strict=True) if plain for piece in plan.rows])
    )  # fmt: skip
    losses, lses = [], []
    penalty = torch.zeros(len(where), device=where.device) if isinstance(head, FourierRows) else None
    for plan, plain in zip(plans, by_rows, strict=True):
        selected = flat_hidden.index_select(0, where[plan.chosen])  # [P, D]
        if not plain:
            assert isinstance(head, FourierRows) and penalty is not None
            logits, added = head.score(selected, plan.rows)  # [P, K], of a block few rows
            lses.append(logits.logsumexp(1))
            losses.append(lses[-1] - logits.gather(1, plan.places[:, None])[:, 0])
            penalty = penalty.index_add(0, plan.chosen, added)
            continue
        biases: list[Tensor | None] = []
        if isinstance(matrix, ImageHead):
            selected, parts = matrix.split_linear(selected, plan.rows)
        else:
            parts = [part for _ in plan.rows for part in next(cut)]
            biases = [bias for piece in plan.rows for bias in select_head_biases(matrix, piece)]
        loss, lse = compute_chunked_cross_entropy(selected, plan.places, parts, max_logits, biases, rule)
        losses.append(loss)
        lses.append(lse)
    if not losses:  # keeps the graph: backward() of a batch without labels gives zeros, not an error
        nothing = (hidden.sum() * 0.0).float()[None][:0]
        return TokenLosses(nothing, nothing, where, group, groups)
    back = torch.argsort(torch.cat([plan.chosen for plan in plans]))
    return TokenLosses(torch.cat(losses)[back], torch.cat(lses)[back], where, group, groups, penalty)


def compute_cross_entropy(
    hidden: Tensor,
    ids: Tensor,
    targets: Tensor,
    head: nn.Module | FourierRows,
    groups: HeadGroups,
    *,
    z_loss: float = 0.0,
    modality_weights: Mapping[str, float] | None = None,
    softmax: str = "block",
    max_logits: int = MAX_LOGITS,
    rule: LogitRule = PLAIN,
) -> SlicedLoss:
    """`compute_token_losses` and their sum, `TokenLosses.reduce`, in one call."""
    losses = compute_token_losses(hidden, ids, targets, head, groups, softmax, max_logits, rule)
    return losses.reduce(z_loss, modality_weights)

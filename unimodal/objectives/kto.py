"""KTO: learning from answers that are each called good or bad, without pairs (arXiv 2402.01306).

    score = Σ over the answer's tokens of log p(token) - log p_start(token)
    good    1 - σ(β (score - z))        bad    1 - σ(β (z - score))

z is how far the model has moved from that of the start on answers that do not belong to their questions, at least 0:
the mean score of the batch's answers (of all ranks), each behind the question of the one after it. Values are those of
TRL's KTOTrainer, for a batch in its order. Without `baseline` z is 0 (TRL's `apo_zero_unpaired`) and a step costs half.
A batch of one answer has no other question, and TRL refuses it: it adds nothing to z here, which is then that of the
other ranks, or 0, and the first such batch is told.

Shapes: B rows, N tokens, K = 1 value a token (1 good, -1 bad), P labelled tokens, S documents.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Self

import torch
import torch.distributed as dist
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.utils import parametrize

from unimodal.config import Config
from unimodal.model.attention import Packing
from unimodal.objectives.next_token import IGNORE, LossConfig
from unimodal.objectives.objective import LossParts, Objective, RowKind, number_documents
from unimodal.objectives.preference import sum_answers
from unimodal.objectives.reference import StartingModel
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class KtoConfig(Config):
    """Learn from answers that are called good or bad."""

    beta: float = Field(default=0.1, gt=0)
    good_weight: float = Field(default=1.0, ge=0)
    bad_weight: float = Field(default=1.0, ge=0)
    baseline: bool = True  # False: z is 0

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if not self.good_weight and not self.bad_weight:
            raise ValueError("good_weight and bad_weight are both 0, and nothing would be learnt; give one a weight")
        return self


class KtoLoss(Objective):
    """See the module. The loss is a mean over answers."""

    rows: ClassVar[RowKind] = "labels"
    compares_with_start: ClassVar[bool] = True

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        cfg: LossConfig | None = None,
        own: KtoConfig | None = None,
    ) -> None:
        super().__init__(model, vocabulary, cfg)
        self.own = own or KtoConfig()
        self.start = StartingModel(model)
        self._told_alone = False

    def forward(
        self,
        ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        further: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, LossParts]:
        """See `Objective.forward`. values: [B, N, 1], 1 in a good answer and -1 in a bad one."""
        assert values is not None, "KTO needs answers with labels"
        own, packing = self.own, Packing.from_position_ids(position_ids)
        moved = exchange_answers(ids, labels, position_ids, further) if own.baseline else None
        with self.start.use() as model:
            before = self.compute_losses(model, ids, labels, position_ids, packing, further).loss
            before_moved = None if moved is None else self._score(model, *moved)
        with parametrize.cached():
            with torch.no_grad():
                now = None if moved is None else self._score(self.model, *moved)
                base = torch.zeros((), device=ids.device)
                if now is not None and before_moved is not None:
                    base = _average_over_ranks(now - before_moved).clamp_min(0)
            losses = self.compute_losses(self.model, ids, labels, position_ids, packing, further)
            documents = number_documents(position_ids)[losses.where]
            self._tell_alone(documents)
            sign = values[..., 0].reshape(-1)[losses.where]
            weights = self.weigh_modalities(losses)
            scores, _, good = sum_answers(weights * (before - losses.loss), weights, documents, sign)
            direction = torch.where(good, 1.0, -1.0)
            each = 1 - torch.sigmoid(own.beta * direction * (scores - base))
            total = (torch.where(good, own.good_weight, own.bad_weight) * each).sum()
            total, result = self.touch_tables(total), losses.reduce()
        rewards = own.beta * scores.detach()
        metrics = [("baseline", (float(base), 1.0))]
        for name, which in (("reward_chosen", good), ("reward_rejected", ~good)):
            metrics.append((name, (float(rewards[which].sum()), float(which.sum()))))
        found = {name: pair for name, pair in metrics if pair[1]}
        return total, self.describe_parts(float(len(each)), result.per_block, found.items())

    def _tell_alone(self, documents: Tensor) -> None:
        """Warns once of a batch of one answer. documents: of the labelled tokens, [P]."""
        if self.own.baseline and self.training and not self._told_alone and len(documents.unique()) == 1:
            self._told_alone = True
            warnings.warn(
                "a batch of objective.kto holds one answer: it adds nothing to the baseline, which needs the question "
                "of another; raise corpus.tokens_per_batch for more answers in a batch",
                stacklevel=2,
            )

    def _score(self, model: PreTrainedModel, *batch: Tensor | None) -> Tensor:
        """The log-probability of each answer of a batch, weighted by medium, [answers]."""
        ids, labels, position_ids, further = batch
        assert ids is not None and labels is not None and position_ids is not None
        packing = Packing.from_position_ids(position_ids)
        losses = self.compute_losses(model, ids, labels, position_ids, packing, further)
        documents, weights = number_documents(position_ids)[losses.where], self.weigh_modalities(losses)
        return sum_answers(-weights * losses.loss, weights, documents, torch.ones_like(losses.loss))[0]


def _average_over_ranks(numbers: Tensor) -> Tensor:
    """The mean of the numbers of all ranks; 0 of none."""
    summed = torch.stack([numbers.sum(), numbers.new_tensor(float(len(numbers)))])
    if dist.is_initialized():
        dist.all_reduce(summed)
    return summed[0] / summed[1].clamp_min(1)


def exchange_answers(
    ids: Tensor, labels: Tensor, position_ids: Tensor, further: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Put the answer of each document behind the question of the next one: a batch of one row, [1, N].

    The arguments are a packed batch, [B, N] and [B, N, G - 1]. The question is what stands before the first labelled
    token. Documents without a label, such as padding, are left out. The first question gets the last answer. A single
    answer has no other question, and loses its labels.
    """
    pieces = list(_cut_documents(labels, position_ids))
    if len(pieces) < 2:
        return ids, torch.full_like(labels, IGNORE), position_ids, further
    flat = [ids.reshape(-1), labels.reshape(-1)] + ([] if further is None else [further.flatten(0, 1)])
    rows: list[list[Tensor]] = [[] for _ in flat]
    positions: list[Tensor] = []
    for (_, answer), (question, _) in zip([*pieces[-1:], *pieces[:-1]], pieces, strict=True):
        for row, array in zip(rows, flat, strict=True):
            row += [array[question], array[answer]]
        positions.append(torch.arange(question.stop - question.start + answer.stop - answer.start, device=ids.device))
    joined = [torch.cat(row)[None] for row in rows]
    return joined[0], joined[1], torch.cat(positions)[None], joined[2] if further is not None else None


def _cut_documents(labels: Tensor, position_ids: Tensor) -> Iterator[tuple[slice, slice]]:
    """(question, answer) of each document with labels, as places of the flattened tokens."""
    wanted = labels.reshape(-1) != IGNORE
    starts = (position_ids.reshape(-1) == 0).nonzero().flatten().tolist()
    for first, last in zip(starts, [*starts[1:], len(wanted)], strict=True):
        learnt = wanted[first:last].nonzero().flatten()
        if len(learnt):
            begin = first + int(learnt[0])
            yield slice(first, begin), slice(begin, last)

"""Preference training on pairs of a chosen and a rejected answer, of any medium: DPO and its relatives.

Direct Preference Optimization (arXiv 2305.18290) raises the likelihood of the chosen answer over that of the rejected
one, both relative to the model at the start (`reference.py`):

    score of an answer = Σ over its tokens of log p(token) - log p_start(token)
    sigmoid    -log σ(β (chosen - rejected)), with label smoothing (conservative DPO, in the note of its authors)
    hinge      max(0, 1 - β (chosen - rejected))                                       (SLiC-HF, 2305.10425)
    ipo        (chosen / tokens - rejected / tokens - 1 / 2β)²                         (IPO, 2310.12036)
    apo_zero   1 - σ(β chosen) + σ(β rejected)                                         (APO, 2408.06266)
    apo_down   σ(β chosen) + 1 - σ(β (chosen - rejected))                              (the same)

Values are those of TRL's DPOTrainer. Length: `length: mean` divides a score by its tokens (TRL's `sigmoid_norm`), and
`tail_weight` below 1 weighs the tokens of the longer answer past the length of the shorter one (LD-DPO, 2409.06411).
Media: `loss.modality_weights` weighs each token of a score, and `tokens`, in the mean, is the sum of these weights.
chosen_weight adds the cross-entropy of the chosen answers, in nats a token (as in RPO, 2404.19733).

A pair stays in one row of a batch, chosen first. The loss is a mean over pairs.

Shapes: B rows, N tokens, K = 1 value a token (1 chosen, -1 rejected), P labelled tokens, S documents, M pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.nn.utils import parametrize

from unimodal.config import Config
from unimodal.model.attention import Packing
from unimodal.objectives.critical_tokens import CriticalConfig, estimate_tokens
from unimodal.objectives.next_token import LossConfig, TokenLosses, shift_labels
from unimodal.objectives.objective import (
    LossParts,
    Objective,
    RowKind,
    number_documents,
    refuse_summed,
    run_decoder,
    sum_documents,
)
from unimodal.objectives.reference import StartingModel
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PreferenceConfig(Config):
    """Learn from pairs which answer is preferred."""

    kind: Literal["sigmoid", "hinge", "ipo", "apo_zero", "apo_down"] = "sigmoid"
    beta: float = Field(default=0.1, gt=0)  # how strongly the model is held to that of the start
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)  # share of the pairs that may be the wrong way round
    length: Literal["sum", "mean"] = "sum"  # ipo always takes the mean
    tail_weight: float = Field(default=1.0, ge=0, le=1)
    chosen_weight: float = Field(default=0.0, ge=0)
    critical: CriticalConfig | None = None  # cDPO: weigh each token (critical_tokens.py)


class PreferenceLoss(Objective):
    """See the module. Raises ValueError for label smoothing of a kind that has none."""

    rows: ClassVar[RowKind] = "pairs"
    compares_with_start: ClassVar[bool] = True

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        cfg: LossConfig | None = None,
        own: PreferenceConfig | None = None,
        contrast: Sequence[PreTrainedModel] = (),
    ) -> None:
        """contrast: for `own.critical`, the model of right answers and that of wrong ones, of the same vocabulary."""
        super().__init__(model, vocabulary, cfg)
        self.own = own or PreferenceConfig()
        if self.own.label_smoothing and self.own.kind != "sigmoid":
            raise ValueError(f"objective.preference.label_smoothing goes with kind sigmoid, not {self.own.kind}")
        critical = self.own.critical
        assert len(contrast) == (0 if critical is None else 2), "critical tokens are found by two models"
        if critical is not None:
            refuse_summed(vocabulary, "preference.critical")
            if critical.form == "token" and self.own.kind != "sigmoid":
                raise ValueError(
                    f"objective.preference.critical.form token goes with kind sigmoid, not {self.own.kind}"
                )
        self.start = StartingModel(model)
        #: in a list: they are not trained, saved or split
        self._contrast = [one.requires_grad_(False).eval() for one in contrast]

    def forward(
        self,
        ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        further: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, LossParts]:
        """See `Objective.forward`. values: [B, N, 1], 1 in a chosen answer and -1 in a rejected one."""
        assert values is not None, "preference training needs pairs"
        packing = Packing.from_position_ids(position_ids)
        with self.start.use() as model:
            before = self.compute_losses(model, ids, labels, position_ids, packing, further).loss
        token_weights = self._find_critical(ids, labels, position_ids, packing)
        with parametrize.cached():
            losses = self.compute_losses(self.model, ids, labels, position_ids, packing, further)
            documents = number_documents(position_ids)[losses.where]
            sign = values[..., 0].reshape(-1)[losses.where]
            weights = self.weigh_modalities(losses) * self.weigh_tail(documents, sign)
            if token_weights is not None:
                weights = weights * torch.where(sign > 0, *token_weights)
            ratios = weights * (before - losses.loss)  # [P]
            scores, lengths, chosen = sum_answers(ratios, weights, documents, sign)
            if self.own.critical is not None and self.own.critical.form == "token":
                each = self.compare_tokens(ratios, documents, sign)
            else:
                each = self.compare(scores[chosen], scores[~chosen], lengths[chosen], lengths[~chosen])  # [M]
            total = each.sum()
            terms = {"pairs": total}
            result = losses.reduce()
            if self.own.chosen_weight:
                terms["chosen"] = (
                    self.own.chosen_weight * len(each) * mean_chosen(losses, sign, self.weigh_modalities(losses))
                )
            total = self.touch_tables(torch.stack(list(terms.values())).sum())
        parts = self.describe_parts(float(len(each)), result.per_block, self._measure(scores.detach(), chosen))
        parts["terms"] = terms
        return total, parts

    def weigh_tail(self, documents: Tensor, sign: Tensor) -> Tensor:
        """1 up to the length of the shorter answer of a pair, `tail_weight` past it, [P]."""
        weights = torch.ones_like(sign)
        if self.own.tail_weight == 1 or not len(sign):
            return weights
        answers, within, counts = number_tokens(documents)
        shorter = counts.view(-1, 2).amin(1).repeat_interleave(2)[answers]
        return torch.where(within < shorter, 1.0, self.own.tail_weight)

    def _find_critical(
        self, ids: Tensor, labels: Tensor, position_ids: Tensor, packing: Packing
    ) -> tuple[Tensor, Tensor] | None:
        """The weights of the labelled tokens if their answer is chosen, and if it is rejected, each [P]."""
        critical = self.own.critical
        if critical is None:
            return None
        with torch.no_grad():
            states = [run_decoder(one, ids, position_ids, packing) for one in self._contrast]
        targets = shift_labels(labels, position_ids)
        likely = estimate_tokens(self._contrast, states, ids, targets, self.groups, self.cfg, critical.contrast)
        return torch.ones_like(likely) if critical.only_rejected else likely, 1 - likely

    def compare_tokens(self, ratios: Tensor, documents: Tensor, sign: Tensor) -> Tensor:
        """Weighted log-ratios of tokens [P] → the loss of each pair [M], a mean over its longer answer's places."""
        answers, within, counts = number_tokens(documents)
        longest, num = int(counts.max()), len(counts) // 2
        place = answers // 2 * longest + within
        margins = sum_documents(self.own.beta * sign * ratios, place, num * longest).view(num, longest)
        there = torch.arange(longest, device=place.device) < counts.view(num, 2).amax(1, keepdim=True)
        smooth = self.own.label_smoothing
        losses = -(1 - smooth) * logsigmoid(margins) - smooth * logsigmoid(-margins)
        return (losses * there).sum(1) / there.sum(1)

    def compare(self, chosen: Tensor, rejected: Tensor, num_chosen: Tensor, num_rejected: Tensor) -> Tensor:
        """Scores of chosen and rejected answers and their lengths, each [M] → the loss of each pair, [M]."""
        own = self.own
        if own.kind == "ipo" or own.length == "mean":
            chosen, rejected = chosen / num_chosen.clamp_min(1e-6), rejected / num_rejected.clamp_min(1e-6)
        margin = own.beta * (chosen - rejected)
        if own.kind == "ipo":
            return (chosen - rejected - 1 / (2 * own.beta)).square()
        if own.kind == "hinge":
            return torch.relu(1 - margin)
        if own.kind == "apo_zero":
            return 1 - torch.sigmoid(own.beta * chosen) + torch.sigmoid(own.beta * rejected)
        if own.kind == "apo_down":
            return torch.sigmoid(own.beta * chosen) + 1 - torch.sigmoid(margin)
        smooth = own.label_smoothing
        return -(1 - smooth) * logsigmoid(margin) - smooth * logsigmoid(-margin)

    def _measure(self, scores: Tensor, chosen: Tensor) -> list[tuple[str, tuple[float, float]]]:
        right, wrong = scores[chosen] * self.own.beta, scores[~chosen] * self.own.beta
        num = float(len(right))
        return [
            ("reward_chosen", (float(right.sum()), num)),
            ("reward_rejected", (float(wrong.sum()), num)),
            ("reward_margin", (float((right - wrong).sum()), num)),
            ("reward_accuracy", (float((right > wrong).sum()), num)),
        ]


def number_tokens(documents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """documents of the labelled tokens, [P] → (the answer of each token, counted in the batch, and its place within the
    answer, each [P]; the tokens of each answer)."""
    order = torch.argsort(documents, stable=True)  # the codes of summed positions stand behind all others
    _, inverse, counts = torch.unique_consecutive(documents[order], return_inverse=True, return_counts=True)
    within = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[inverse]
    back = torch.argsort(order)
    return inverse[back], within[back], counts


def sum_answers(numbers: Tensor, weights: Tensor, documents: Tensor, sign: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """numbers, weights, documents and sign of the labelled tokens, each [P] → the sums of numbers and of weights of
    each answer, and whether it was wanted, each [answers], in the order of the batch."""
    present, inverse = documents.unique(return_inverse=True)
    wanted = torch.zeros(len(present), dtype=torch.bool, device=sign.device)
    wanted[inverse] = sign > 0
    return sum_documents(numbers, inverse, len(present)), sum_documents(weights, inverse, len(present)), wanted


def mean_chosen(losses: TokenLosses, sign: Tensor, weights: Tensor) -> Tensor:
    """The mean cross-entropy of the tokens that are wanted, in nats, weighted by weights [P]."""
    wanted = weights * (sign > 0)
    return (losses.loss * wanted).sum() / wanted.sum().clamp_min(1e-6)

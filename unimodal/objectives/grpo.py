"""GRPO: answers that the model wrote itself, learnt by how much better they are than others to the same question.

Group Relative Policy Optimization (arXiv 2402.03300). Each question gets a group of answers, which rewards score; the
rollout is `unimodal/tuning/rollout.py`, this file sees rows, log-probabilities and advantages:

    advantage   (reward - mean of the group) / (standard deviation of the group + 1e-4), or without the division
                (`scale_rewards: false`, Dr. GRPO, 2503.20783)
    loss        mean over answers of the mean over tokens of
                -min(ratio · advantage, clip(ratio, 1 - ε, 1 + ε) · advantage) + β · KL to the model of the start

with ratio = p / p when the answer was written, and KL by its unbiased estimate exp(d) - d - 1, d = log p_start - log p.
An answer is learnt from once, at the weights that wrote it, so that the ratio is 1 and the clip waits for `repeats`
above 1. Values are those of TRL's GRPOTrainer with `loss_type="grpo"`.

The mean over tokens is weighted by `loss.modality_weights`. In a batch without values, as in validation, the rows' own
answers are scored as in next-token training.

Shapes: B rows, N tokens, K = 2 values a token (advantage, log-probability when it was written), P labelled tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.utils import parametrize

from unimodal.config import Config
from unimodal.model.attention import Packing
from unimodal.objectives.next_token import LossConfig
from unimodal.objectives.objective import LossParts, Objective, RowKind, number_documents, sum_documents
from unimodal.objectives.reference import StartingModel
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class GrpoConfig(Config):
    """Learn from answers of the model's own, by rewards."""

    rewards: dict[str, dict[str, object]] = Field(default={}, min_length=1)  # name → settings (unimodal/tuning/rewards)
    weights: dict[str, float] = {}  # of each reward in their sum; 1 where not given
    medium: str | None = None  # what is written: that of the rows' answers by default
    group: int = Field(default=8, ge=2)  # answers to a question
    questions: int = Field(default=2, ge=1)  # in a batch
    repeats: int = Field(default=1, ge=1)  # steps that learn from the same answers
    max_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    beta: float = Field(default=0.04, ge=0)  # weight of the divergence from the model of the start
    clip: float = Field(default=0.2, gt=0)
    scale_rewards: bool = True


class GrpoLoss(Objective):
    """See the module."""

    rows: ClassVar[RowKind] = "prompts"
    compares_with_start: ClassVar[bool] = True

    def __init__(self, model: PreTrainedModel, vocabulary: Vocabulary, cfg: LossConfig | None, own: GrpoConfig) -> None:
        super().__init__(model, vocabulary, cfg)
        self.own = own
        self.start = StartingModel(model) if own.beta else None

    def forward(
        self,
        ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        further: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, LossParts]:
        """See `Objective.forward`. values: [B, N, 2]."""
        own, packing = self.own, Packing.from_position_ids(position_ids)
        before = None
        if self.start is not None and values is not None:
            with self.start.use() as model:
                before = -self.compute_losses(model, ids, labels, position_ids, packing, further).loss
        with parametrize.cached():
            losses = self.compute_losses(self.model, ids, labels, position_ids, packing, further)
            result = losses.reduce(self.cfg.z_loss, self.cfg.modality_weights)
            if values is None:
                return self.touch_tables(result.total), self.describe_parts(result.weight, result.per_block)
            advantage, written = values.flatten(0, 1)[losses.where].unbind(1)
            now = -losses.loss
            log_ratio = now - (now.detach() if own.repeats == 1 else written)
            ratio = log_ratio.exp()
            clipped = ratio.clamp(1 - own.clip, 1 + own.clip)
            each = -torch.minimum(ratio * advantage, clipped * advantage)  # [P]
            divergence = torch.zeros_like(each)
            if before is not None:
                divergence = (before - now).exp() - (before - now) - 1
                each = each + own.beta * divergence
            present, answers = number_documents(position_ids)[losses.where].unique(return_inverse=True)
            num = len(present)
            weights = self.weigh_modalities(losses)
            lengths = sum_documents(weights, answers, num).clamp_min(1e-6)
            total = self.touch_tables((sum_documents(weights * each, answers, num) / lengths).sum())
        tokens = float(len(each))
        metrics = {
            "divergence": (float(divergence.detach().sum()), tokens),
            "clipped": (float((ratio.detach() != clipped.detach()).sum()), tokens),
        }
        return total, self.describe_parts(float(num), result.per_block, metrics.items())


def compute_advantages(rewards: Tensor, scale: bool = True) -> Tensor:
    """Rewards of groups [questions, group] → the advantage of each answer; 0 where all of a group are alike."""
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True) + 1e-4) if scale else centred

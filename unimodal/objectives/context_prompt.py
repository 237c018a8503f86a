"""The loss of Context-aware Prompt Tuning: each label of the context is learnt too, the nearer the more.

The labels of a document weigh 1, those of the last example of the context `decay`, of the one before it decay², and so
on: the context is K more training examples whose labels are read in order. The sum is divided by the number of labels,
as peft's `CPTEmbedding.calculate_loss` does, and not by their weights.

Shapes: B rows, N tokens, P labelled tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.utils import parametrize

from unimodal.config import Config
from unimodal.model.attention import Packing
from unimodal.model.context_prompt import ContextPrompt
from unimodal.model.soft_prompt import FIRST_ID, find_soft_prompt
from unimodal.objectives.next_token import IGNORE, LossConfig, compute_token_losses, shift_labels
from unimodal.objectives.objective import LossParts, Objective, refuse_summed, run_decoder
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ContextLossConfig(Config):
    """decay: by which the labels of an example weigh less than those of the next; 1 weighs all alike."""

    decay: float = Field(default=0.95, gt=0, le=1)


class ContextPromptLoss(Objective):
    """See the module. Raises ValueError for a model without a prompt of examples (`prompt.context`)."""

    def __init__(
        self, model: PreTrainedModel, vocabulary: Vocabulary, cfg: LossConfig | None, own: ContextLossConfig
    ) -> None:
        super().__init__(model, vocabulary, cfg)
        refuse_summed(vocabulary, "context_prompt")
        prompt = find_soft_prompt(model)
        if not isinstance(prompt, ContextPrompt):
            raise ValueError("objective.context_prompt learns a prompt of examples; name them in prompt.context")
        self.decay = own.decay

    def forward(
        self,
        ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        further: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, LossParts]:
        """See `Objective.forward`. further, values: not used."""
        with parametrize.cached():
            hidden = run_decoder(self.model, ids, position_ids, Packing.from_position_ids(position_ids))
            read, known, weights = self._read_context(ids, labels)
            targets = shift_labels(known, position_ids)
            cfg, head = self.cfg, self.model.get_output_embeddings()
            losses = compute_token_losses(
                hidden, read, targets, head, self.groups, cfg.softmax, cfg.max_logits, self.rule
            )
            token_weights = weights.roll(-1, 1).reshape(-1)[losses.where]  # a label's weight, at the step before it
            found = losses.reduce(cfg.z_loss, cfg.modality_weights, token_weights)
            count = float(self.weigh_modalities(losses).double().sum())
        return self.touch_tables(found.total), self.describe_parts(count, found.per_block)

    def _read_context(self, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The rows that stand for each token, the labels with those of the context, and their weights: [B, N] each."""
        prompt = find_soft_prompt(self.model)
        assert isinstance(prompt, ContextPrompt)
        is_context = ids < 0
        places = (ids - FIRST_ID).clamp(0, len(prompt) - 1)
        rows, types = prompt.rows[places], prompt.types[places]
        read = torch.where(is_context, rows, ids)
        labelled = is_context & (types % 4 == 0)
        known = torch.where(is_context, torch.where(labelled, rows, IGNORE), labels)
        behind = (prompt.types.max() - types).div(4, rounding_mode="floor") + 1  # 1 for the last example
        weights = torch.where(labelled, self.decay ** behind.float(), 1.0)
        return read, known, weights

"""Next-token training of packed documents, on all labelled tokens or on those that are worth it.

Every code of a summed position is a token of the loss: the first is scored by the decoder's state, the others by the
depth decoder's, which reads the codes before them (`depth_loss.py`).

Shapes: B rows, N tokens, G the most codes of a position, K values a token, P labelled tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from unimodal.model.attention import Packing
from unimodal.objectives.next_token import IGNORE, LossConfig, TokenLosses
from unimodal.objectives.objective import LossParts, Objective
from unimodal.objectives.reference import copy_trained
from unimodal.objectives.token_selection import measure_prompt_attention, select_tokens
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PackedLoss(Objective):
    """The cross-entropy of the labelled tokens.

    With `cfg.keep_share` below 1 it keeps a copy of what is trained, as it was at the start, to select tokens by
    (`token_selection.py`).
    """

    def __init__(self, model: PreTrainedModel, vocabulary: Vocabulary, cfg: LossConfig | None = None) -> None:
        super().__init__(model, vocabulary, cfg)
        self.watch_layer = max(0, int(model.config.num_hidden_layers) * 3 // 4 - 1)
        #: the model at the start: a copy of what is trained, beside the same frozen weights
        self.history: PreTrainedModel | None = copy_trained(model) if self.cfg.keep_share < 1 else None

    def forward(
        self,
        ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        further: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, LossParts]:
        """See `Objective.forward`. values: not used.

        Raises ValueError if tokens are to be selected and the model's attention cannot be watched.
        """
        packing = Packing.from_position_ids(position_ids)
        earlier = None
        if self.history is not None and self.training:
            # in a cache of its own: torch would take the copied model's rows for those of the model itself
            with torch.no_grad(), parametrize.cached():
                earlier = self.compute_losses(self.history.eval(), ids, labels, position_ids, packing, further).loss
        with parametrize.cached():  # rows that share what they learn are computed once
            return self._compute_total(ids, labels, position_ids, packing, further, earlier)

    def _compute_total(
        self,
        ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        packing: Packing,
        further: Tensor | None,
        earlier: Tensor | None,
    ) -> tuple[Tensor, LossParts]:
        """earlier: the losses [P] of the model at the start; None learns from all tokens."""
        packing.watch_layer = None if earlier is None else self.watch_layer
        losses = self.compute_losses(self.model, ids, labels, position_ids, packing, further)
        token_weights = None
        if earlier is not None:
            token_weights = self._weigh_tokens(losses, earlier, labels, packing)
        factors = {str(name): factor for name, factor in self.cfg.modality_weights.items()}
        result = losses.reduce(self.cfg.z_loss, factors, token_weights)
        return self.touch_tables(result.total), self.describe_parts(result.weight, result.per_block)

    @torch.no_grad()
    def _weigh_tokens(self, losses: TokenLosses, earlier: Tensor, labels: Tensor, packing: Packing) -> Tensor:
        """The weight [P] of each labelled token: 1 where it is learnt from, else 0."""
        if packing.watched is None:
            raise ValueError("keep_share below 1 needs attention 'varlen' or 'xformers'; choose one of them or 'auto'")
        to_prompt = measure_prompt_attention(*packing.watched, packing, labels == IGNORE).reshape(-1)[losses.where]
        return select_tokens(earlier - losses.loss, to_prompt, self.cfg.keep_share, self.cfg.loss_share)

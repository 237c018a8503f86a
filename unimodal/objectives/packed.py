"""A decoder and its loss as one module: what DDP and FSDP2 wrap, since both act on a module's ``forward``.

Every code of a summed position is a token of the loss: the first is scored by the decoder's state, the others by the
depth decoder's, which reads the codes before them (`depth_loss.py`).

Shapes: B rows, N tokens, G the most codes of a position.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from unimodal.model.attention import Packing
from unimodal.model.depth_decoder import embed_positions, find_depth_decoder
from unimodal.model.logits import read_logit_rule
from unimodal.objectives.depth_loss import compute_depth_losses
from unimodal.objectives.next_token import (
    IGNORE,
    HeadGroups,
    LossConfig,
    TokenLosses,
    compute_token_losses,
    shift_labels,
)
from unimodal.objectives.token_selection import measure_prompt_attention, select_tokens
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LossParts(TypedDict):
    """What a summed loss consists of.

    weight: what to divide it by. modalities, blocks: by name, (summed cross-entropy in nats, number of tokens).
    """

    weight: float
    modalities: dict[str, tuple[float, int]]
    blocks: dict[str, tuple[float, int]]


class PackedLoss(nn.Module):
    """Runs packed documents through a causal LM and returns a summed loss with its parts.

    With `cfg.keep_share` below 1 it keeps a copy of what is trained, as it was at the start, to select tokens by
    (`token_selection.py`).
    """

    def __init__(self, model: PreTrainedModel, vocabulary: Vocabulary, cfg: LossConfig | None = None) -> None:
        super().__init__()
        self.model = model
        self.cfg = cfg or LossConfig()
        self.groups, self.modalities = HeadGroups.from_vocabulary(vocabulary), vocabulary.modalities
        self.rule = read_logit_rule(model)
        self.watch_layer = max(0, int(model.config.num_hidden_layers) * 3 // 4 - 1)
        #: the model at the start: a copy of what is trained, beside the same frozen weights
        self.history: PreTrainedModel | None = None
        if self.cfg.keep_share < 1:
            # deepcopy's memo of what is not to be copied goes by id()
            frozen = {id(p): p for p in model.parameters() if not p.requires_grad}
            self.history = copy.deepcopy(model, frozen).requires_grad_(False)

    def forward(
        self, ids: Tensor, labels: Tensor, position_ids: Tensor, further: Tensor | None = None
    ) -> tuple[Tensor, LossParts]:
        """ids, labels (aligned, -100: not scored) and position_ids, each int64 [B, N] → the summed loss and its parts.

        further: int64 [B, N, G - 1], the codes behind the first of a summed position, -1 for none.
        Raises ValueError if tokens are to be selected and the model's attention cannot be watched.
        """
        packing = Packing.from_position_ids(position_ids)
        earlier = None
        if self.history is not None and self.training:
            # in a cache of its own: torch would take the copied model's rows for those of the model itself
            with torch.no_grad(), parametrize.cached():
                earlier = self._compute_losses(self.history.eval(), ids, labels, position_ids, packing, further).loss
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
        losses = self._compute_losses(self.model, ids, labels, position_ids, packing, further)
        token_weights = None
        if earlier is not None:
            token_weights = self._weigh_tokens(losses, earlier, labels, packing)
        factors = {str(name): factor for name, factor in self.cfg.modality_weights.items()}
        result = losses.reduce(self.cfg.z_loss, factors, token_weights)
        total = result.total
        modules = [self.model.get_input_embeddings(), self.model.get_output_embeddings()]
        depth = find_depth_decoder(self.model)
        modules += [] if depth is None else [depth]
        for parameter in dict.fromkeys(p for module in modules for p in module.parameters()):
            if parameter.requires_grad:  # rows that this batch does not score still take part: DDP waits for them
                total = total + 0.0 * parameter.sum()
        modality_of = {group.name: group.modality for group in self.groups.groups}
        modalities = dict.fromkeys(self.modalities, (0.0, 0))
        for name, (summed, count) in result.per_block.items():
            old = modalities[modality_of[name]]
            modalities[modality_of[name]] = (old[0] + summed, old[1] + count)
        found = {name: pair for name, pair in modalities.items() if pair[1]}
        return total, LossParts(weight=result.weight, modalities=found, blocks=result.per_block)

    def _compute_losses(
        self,
        model: PreTrainedModel,
        ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        packing: Packing,
        further: Tensor | None,
    ) -> TokenLosses:
        decoder, cfg, head = model.get_decoder(), self.cfg, model.get_output_embeddings()
        depth = None if further is None else find_depth_decoder(model)
        if further is None:
            out = decoder(input_ids=ids, position_ids=position_ids, use_cache=False, packing=packing)
        else:
            assert depth is not None, "a vocabulary with summed positions needs a depth decoder"
            embedded = embed_positions(model.get_input_embeddings(), torch.cat([ids[..., None], further], 2))
            out = decoder(inputs_embeds=embedded, position_ids=position_ids, use_cache=False, packing=packing)
        hidden, targets = out.last_hidden_state, shift_labels(labels, position_ids)
        losses = compute_token_losses(hidden, ids, targets, head, self.groups, cfg.softmax, cfg.max_logits, self.rule)
        if depth is None or further is None:
            return losses
        return losses.join(compute_depth_losses(model, depth, hidden, targets, further, self.groups, cfg, self.rule))

    @torch.no_grad()
    def _weigh_tokens(self, losses: TokenLosses, earlier: Tensor, labels: Tensor, packing: Packing) -> Tensor:
        """The weight [P] of each labelled token: 1 where it is learnt from, else 0."""
        if packing.watched is None:
            raise ValueError("keep_share below 1 needs attention 'varlen' or 'xformers'; choose one of them or 'auto'")
        to_prompt = measure_prompt_attention(*packing.watched, packing, labels == IGNORE).reshape(-1)[losses.where]
        return select_tokens(earlier - losses.loss, to_prompt, self.cfg.keep_share, self.cfg.loss_share)

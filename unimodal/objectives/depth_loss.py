"""The losses of a summed position's codes behind the first (`model/depth_decoder.py`).

They are learnt where the first code is. Each is one token of the loss, so that flat and summed models are compared in
nats a code.

Shapes: B rows, N tokens, P labelled summed positions, G the most codes of a position, C codes to score, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.model.depth_decoder import DepthDecoder
from unimodal.model.logits import LogitRule
from unimodal.objectives.next_token import IGNORE, HeadGroups, LossConfig, TokenLosses, compute_token_losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def compute_depth_losses(
    model: PreTrainedModel,
    depth: DepthDecoder,
    hidden: Tensor,
    targets: Tensor,
    further: Tensor,
    groups: HeadGroups,
    cfg: LossConfig,
    rule: LogitRule,
) -> TokenLosses:
    """The losses of further codes, at decoder states [B, N, D].

    targets: first codes [B, N] of `shift_labels`. further: the codes behind the first of each position, int64
    [B, N, G - 1], aligned with the tokens; -1 for none.
    """
    shifted = F.pad(further[:, 1:], (0, 0, 0, 1), value=-1).flatten(0, 1)  # [B * N, G - 1]
    first = targets.reshape(-1)
    where = ((first != IGNORE) & (shifted[:, 0] >= 0)).nonzero().squeeze(1)  # [P]
    codes = torch.cat([first[where, None], shifted[where]], 1)  # [P, G]
    table = model.get_input_embeddings()
    states = depth(hidden.flatten(0, 1)[where], table(codes[:, :-1].clamp(min=0)))  # [P, G - 1, D]
    there = codes[:, 1:] >= 0  # blocks may have unequal numbers of groups
    losses = compute_token_losses(
        states[there][None],  # [1, C, D]
        codes[:, :-1][there][None],
        codes[:, 1:][there][None],
        model.get_output_embeddings(),
        groups,
        cfg.softmax,
        cfg.max_logits,
        rule,
    )
    places = where[:, None].expand_as(there)[there]  # [C]
    return TokenLosses(losses.loss, losses.lse, places, losses.group, groups)

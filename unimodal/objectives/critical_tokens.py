"""Which tokens of an answer decide whether it is right: cDPO's contrastive estimation (arXiv 2411.19943).

Two models are tuned, one on right answers and one on wrong ones. Where the first finds a token far less likely than the
second does, the token is critical:

    s(token) = softmax((1 + contrast) · logits_right - contrast · logits_wrong)[token]

A chosen answer's token counts s, or 1 with `only_rejected`, and a rejected answer's 1 - s. As published, the weighted
log-ratios of an answer are summed and compared (`form: sum`). The authors' code compares the answers token by token, at
equal places, and takes the mean (`form: token`); over unequal answers the rest of the longer one then counts alone.
The code's contrast is 1.

Shapes: B rows, N tokens, P labelled tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from unimodal.config import MAY_CHANGE, Config
from unimodal.objectives.distributions import compute_logits, find_labelled, list_chunks
from unimodal.objectives.next_token import HeadGroups, LossConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CriticalConfig(Config):
    """Weigh each token of a pair by how critical it is."""

    #: folders of the models that were tuned on right and on wrong answers
    right: Annotated[Path, MAY_CHANGE]
    wrong: Annotated[Path, MAY_CHANGE]
    contrast: float = Field(default=1.0, ge=0)
    only_rejected: bool = True
    form: Literal["sum", "token"] = "sum"


@torch.no_grad()
def estimate_tokens(
    models: Sequence[PreTrainedModel],
    states: Sequence[Tensor],
    ids: Tensor,
    targets: Tensor,
    groups: HeadGroups,
    cfg: LossConfig,
    contrast: float,
) -> Tensor:
    """s of each labelled token, [P]. models, states [B, N, D]: of the model of right answers and of that of wrong ones.

    ids and targets (`shift_labels`): [B, N].
    """
    tokens = find_labelled(ids, targets, groups)
    found = torch.zeros(len(tokens.where), device=ids.device)
    for chunk in list_chunks(tokens, groups, cfg):
        places = tokens.where[chunk.places]
        right, wrong = (
            compute_logits(model, state.flatten(0, 1)[places], chunk.rows)
            for model, state in zip(models, states, strict=True)
        )
        mixed = ((1 + contrast) * right - contrast * wrong).softmax(-1)
        found[chunk.places] = mixed.gather(1, tokens.index[chunk.places, None])[:, 0]
    return found

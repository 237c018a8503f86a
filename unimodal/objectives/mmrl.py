"""Next tokens, learnt by a soft prompt that leaves the states of answers near those of the base: MMRL (2503.08497).

    loss = Σ_labels (cross-entropy + weight · (1 - cos(h, h_start)))

h is the last state that a label is predicted from, h_start that of the model of the start without any prompt. The
published term compares the features of pictures and of classes, each as a mean; here the features are the states that
the frozen head reads, of words and of media alike, and the loop divides by the number of labels. The authors' weights
go from 0.01 to 7, larger for data whose classes are alike. The prompt it was made for is `prompt.space`
(`model/shared_space.py`); any other is held as well.

Shapes: B rows, N tokens, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.nn.utils import parametrize

from unimodal.config import Config
from unimodal.model.attention import Packing
from unimodal.model.soft_prompt import find_soft_prompt
from unimodal.objectives.next_token import IGNORE, LossConfig, shift_labels
from unimodal.objectives.objective import LossParts, Objective, refuse_summed, run_decoder
from unimodal.objectives.prompt_swap import read_with_prompt
from unimodal.objectives.reference import StartingModel
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class MmrlConfig(Config):
    """weight: of a state that points elsewhere, in nats."""

    weight: float = Field(default=1.0, gt=0)


class MmrlLoss(Objective):
    """See the module. Raises ValueError for a model without a soft prompt, and for summed positions."""

    compares_with_start = True

    def __init__(self, model: PreTrainedModel, vocabulary: Vocabulary, cfg: LossConfig | None, own: MmrlConfig) -> None:
        super().__init__(model, vocabulary, cfg)
        refuse_summed(vocabulary, "mmrl")
        if find_soft_prompt(model) is None:
            raise ValueError("objective.mmrl holds what a soft prompt changes; set prompt, such as prompt.space.width")
        self.own, self.start = own, StartingModel(model)

    def forward(
        self,
        ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        further: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, LossParts]:
        """See `Objective.forward`. further, values: not used."""
        targets = shift_labels(labels, position_ids)
        with self.start.use() as start:
            known = read_with_prompt(start, (), ids, position_ids)  # [B * N, D]
        with parametrize.cached():
            hidden = run_decoder(self.model, ids, position_ids, Packing.from_position_ids(position_ids))
            losses = self.score(self.model, hidden, ids, targets)
            found = losses.reduce(self.cfg.z_loss, self.cfg.modality_weights)
            held = ((targets != IGNORE) & (ids >= 0)).reshape(-1)  # a prompt's own tokens have no state in the base
            apart = 1 - F.cosine_similarity(hidden.flatten(0, 1)[held].float(), known[held].float(), dim=1)
            term = self.own.weight * apart.sum()
        total = self.touch_tables(found.total)
        metrics = {"apart": (float(apart.detach().sum()), float(max(1, len(apart))))}
        parts = self.describe_parts(found.weight, found.per_block, metrics.items())
        parts["terms"] = {"answers": total, "mmrl": term}
        return total + term, parts

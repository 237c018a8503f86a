"""New rows that are kept near what they began as: Re-Initialization Token Learning (arXiv 2506.14248).

A token for a tool, or for anything that has a name, begins as the rows of the words that describe it
(`model/initialisers/description.py`) and is drawn back to them while it learns, so that it stays among the words that
the base knows. The term is added to whichever objective there is:

    loss + weight · Σ ‖row - what it began as‖², over new rows and sides

The authors publish no code; their prior is pooled over the pieces of a tool's name or description, as ours is, and the
penalty is a squared distance, a sum, so that a row is held alike among few and many. All new rows have one, those
without words too.

Shapes: B rows, N tokens, K values a token, R new rows, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from unimodal.config import Config
from unimodal.model.rows import ExtendedEmbedding, find_rows, get_new_rows
from unimodal.objectives.objective import LossParts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RowPriorConfig(Config):
    weight: float = Field(default=0.01, gt=0)


class RowPrior(nn.Module):
    """An objective, called as one, and the term beside it.

    Make it before the first step, and before a checkpoint is loaded. Raises ValueError for a model without new rows.
    """

    def __init__(self, main: nn.Module, model: PreTrainedModel, own: RowPriorConfig) -> None:
        super().__init__()
        self.main, self.own = main, own
        self._model = [model]  # in a list: its parameters are the objective's
        if not isinstance(find_rows(model), ExtendedEmbedding):
            raise ValueError("objective.row_prior keeps new rows near their start, and there are none; leave it out")
        for side, rows in get_new_rows(model).items():
            self.register_buffer(f"start_{side}", rows.detach().clone(), persistent=False)

    def forward(
        self,
        ids: Tensor,
        labels: Tensor,
        position_ids: Tensor,
        further: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, LossParts]:
        """See `Objective.forward`."""
        with parametrize.cached():
            total, parts = self.main(ids, labels, position_ids, further, values)
            if not torch.is_grad_enabled():  # validation scores the objective alone
                return total, parts
            term = self.measure_distance()
        num = sum(len(rows) for rows in get_new_rows(self._model[0]).values())
        parts["metrics"]["row_distance"] = (float(term.detach()), float(num))
        return total + self.own.weight * parts["weight"] * term, parts

    def measure_distance(self) -> Tensor:
        """The summed squared distances of the rows from their start."""
        found = [
            (rows - getattr(self, f"start_{side}")).float().square().sum()
            for side, rows in get_new_rows(self._model[0]).items()
        ]
        return torch.stack(found).sum()

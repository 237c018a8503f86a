"""A soft prompt that begins as examples and stays near them: Context-aware Prompt Tuning (arXiv 2410.17222).

The prompt is K documents of the task, in order, as the model reads them. What is trained is a change of each vector,
and after every step the change of a token is shortened to the length that its kind is allowed (projected gradient
descent, an attack that lowers the loss in place of raising it). Labels never change: they are what is to be said.

    kind of a token      may change by
    a template's mark    format_epsilon · sqrt(D / 2048)
    the input            epsilon · sqrt(D / 2048)
    the label            nothing

The values are those of peft's `CPTEmbedding`, whose type mask is `types`; what is learnt is in
`unimodal/objectives/context_prompt.py`. Saved, it is a plain prompt.

Shapes: P tokens of the prompt, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from unimodal.model.prompt_settings import ContextSettings
from unimodal.model.soft_prompt import SoftPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INPUT_TEMPLATE, INPUT, OUTPUT_TEMPLATE, LABEL = 1, 2, 3, 4  # of the first example; the next has 5, 6, 7, 8
_UNCHANGED = 1e-10  # peft's
_USUAL_WIDTH = 2048  # of the model that the authors' lengths are for


@dataclass(frozen=True, eq=False)
class Context:
    """Examples as they are read. rows: rows of the vocabulary, [P]. types: peft's type mask, [P]."""

    rows: tuple[int, ...]
    types: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.rows) == len(self.types) > 0


def join_examples(examples: Sequence[tuple[np.ndarray, np.ndarray]], marks: frozenset[int]) -> Context:
    """Documents (ids [N], labels [N]) in one context. marks: the rows that are marks of a template.

    A labelled token is a label; of the others, a mark before the input belongs to the input's template, and one behind
    it to the output's.
    """
    rows: list[int] = []
    types: list[int] = []
    for number, (ids, labels) in enumerate(examples):
        read = False
        for row, label in zip(ids.tolist(), labels.tolist(), strict=True):
            if label >= 0:
                kind = LABEL
            elif row in marks:
                kind = OUTPUT_TEMPLATE if read else INPUT_TEMPLATE
            else:
                kind, read = INPUT, True
            rows.append(row)
            types.append(4 * number + kind)
    return Context(tuple(rows), tuple(types))


class ContextPrompt(SoftPrompt):
    """`vectors` holds the changes, which begin at 0."""

    start: Tensor  # [P, D]
    rows: Tensor  # int64 [P]
    types: Tensor  # int64 [P]
    limits: Tensor  # [P, 1]
    changes: Tensor  # [P, 1], 1 where a token may change

    def __init__(self, start: Tensor, context: Context, epsilon: float = 0.1, format_epsilon: float = 0.1) -> None:
        super().__init__(torch.zeros_like(start))
        types = torch.tensor(context.types)
        scale = (start.shape[1] / _USUAL_WIDTH) ** 0.5
        lengths = torch.tensor([_UNCHANGED, format_epsilon * scale, epsilon * scale, format_epsilon * scale])
        found = {
            "start": start.detach().float().clone(),
            "rows": torch.tensor(context.rows),
            "types": types,
            "limits": lengths[types % 4][:, None],
            "changes": (types % 4 != 0).float()[:, None],
        }
        for name, value in found.items():
            self.register_buffer(name, value.to(start.device), persistent=False)

    def compute_vectors(self) -> Tensor:
        if self.training and torch.is_grad_enabled():
            with torch.no_grad():
                self.vectors.copy_(self.project(self.vectors))
            return self.start + self.changes * self.vectors
        return self.start + self.changes * self.project(self.vectors.detach())

    def project(self, changes: Tensor) -> Tensor:
        """Changes [P, D], each shortened to its limit."""
        length = changes.norm(dim=1, keepdim=True)
        return changes * (self.limits / torch.maximum(length, self.limits))


@torch.no_grad()
def make_context_prompt(model: PreTrainedModel, context: Context, settings: ContextSettings) -> ContextPrompt:
    """The prompt of these examples for a model with all rows of its vocabulary."""
    ids = torch.tensor([context.rows], device=next(model.parameters()).device)
    start = model.get_input_embeddings()(ids)[0]
    return ContextPrompt(start, context, settings.epsilon, settings.format_epsilon)

"""Random, next and next-all tokens in one mixture (TokenUnify, arXiv 2405.16847), over spans of codes.

Each document with a span to learn is given one of three tasks, by their weights:

    random     a uniform share of the codes is hidden and predicted from those that are left
    next       each code is predicted from those before it
    next_all   from a place that is drawn on, all codes are hidden: each is predicted from the codes before that place

The authors pretrain a Mamba network on microscope volumes, by squared errors, and learn tasks in one sum or by turns;
here codes are classified, and a task is drawn for each document, whose expectation is that sum. The first two tasks
are masked and causal training (`masked_codes.py`), the third keeps errors from adding up: a code is learnt however far
back the last known one lies. The decoder `masked` writes what was so trained in a few passes, and, as long as `next`
has a weight, every decoder for causal models writes it too.

Shapes: B rows, N tokens, L codes of a span, P labelled tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
from pydantic import Field, JsonValue, model_validator
from torch import Tensor

from unimodal.objectives.masked_codes import hide_codes
from unimodal.objectives.next_token import LossConfig
from unimodal.objectives.objective import LossParts, number_documents
from unimodal.objectives.spans import LearntSpan, SpanObjective, leave_out_behind, list_seen
from unimodal.objectives.writing import SpanConfig, SpanWriting
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TASKS = ("random", "next", "next_all")


class TokenUnifyConfig(SpanConfig):
    """random, next, next_all: weights by which a document's task is drawn. own_place: predict a hidden code at its own
    place. mask_id: the row that stands for a hidden code, by default ``<|pad|>``.
    """

    random: float = Field(default=1.0, ge=0)
    next: float = Field(default=1.0, ge=0)
    next_all: float = Field(default=1.0, ge=0)
    own_place: bool = False
    mask_id: int | None = None

    @model_validator(mode="after")
    def _check_some(self) -> Self:
        if not sum(self.weights):
            raise ValueError("random, next and next_all are all 0; give one of them a weight")
        return self

    @property
    def weights(self) -> tuple[float, float, float]:
        """Those of `TASKS`."""
        return self.random, self.next, self.next_all

    def describe_writing(self) -> SpanWriting:
        settings: dict[str, JsonValue] = {"sees_ahead": True, "own_place": self.own_place, "mask_id": self.mask_id}
        causal = self.share < 1 or self.next > 0
        return SpanWriting(objective="token_unify", decoders={"masked": settings}, token_by_token=causal)


def draw_task(own: TokenUnifyConfig, generator: torch.Generator) -> str:
    """One of `TASKS`, by their weights."""
    return TASKS[int(torch.multinomial(torch.tensor(own.weights), 1, generator=generator))]


def hide_by_task(task: str, span: LearntSpan) -> Tensor:
    """The codes of a span that a task hides, bool [L]; none for `next`."""
    if task == "random":
        return hide_codes(span, "uniform")
    hidden = torch.zeros(span.length, dtype=torch.bool)
    if task == "next_all":
        hidden[int(torch.randint(span.length, (), generator=span.generator)) :] = True
    return hidden


class TokenUnify(SpanObjective):
    """Runs packed documents through a causal LM, each with its task."""

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        cfg: LossConfig | None = None,
        own: TokenUnifyConfig | None = None,
    ) -> None:
        self.own: TokenUnifyConfig = own or TokenUnifyConfig()
        super().__init__(model, vocabulary, cfg, self.own, "token_unify", self.own.mask_id)

    def learn(
        self, ids: Tensor, labels: Tensor, position_ids: Tensor, spans: list[LearntSpan]
    ) -> tuple[Tensor, LossParts]:
        """See `SpanObjective.learn`. The metrics are the losses of the tasks' documents."""
        documents = number_documents(position_ids).view_as(ids)
        hidden, task_of = torch.zeros_like(ids, dtype=torch.bool), torch.full_like(ids, -1)
        hiding = []
        for span in spans:
            task = draw_task(self.own, span.generator)
            task_of[span.row, documents[span.row] == documents[span.row, span.places[0]]] = TASKS.index(task)
            if task != "next":
                hidden[span.row, span.places] = hide_by_task(task, span).to(ids.device)
                hiding.append(span)
        patterns = [torch.ones(span.length, span.length, dtype=torch.bool) for span in hiding]
        seen = list_seen(position_ids, hiding, patterns)
        learnt = torch.where(hidden, labels, leave_out_behind(labels, position_ids, hiding))
        states = self.run_seen(ids.masked_fill(hidden, self.mask_id), position_ids, seen)
        losses = self.score_places(states, ids, learnt, position_ids, hidden if self.own.own_place else None)
        total, parts = self.sum_up(losses)
        factors = {str(name): one for name, one in self.cfg.modality_weights.items()}
        terms = {}
        for number, task in enumerate(TASKS):
            own = losses.select(task_of.reshape(-1)[losses.where] == number)
            if own.count:
                terms[task] = own.reduce(self.cfg.z_loss, factors).total
                parts["metrics"][f"loss_{task}"] = (float(own.loss.detach().sum()), float(own.count))
        rest = losses.select(task_of.reshape(-1)[losses.where] < 0)
        parts["terms"] = terms | ({"others": rest.reduce(self.cfg.z_loss, factors).total} if rest.count else {})
        return total, parts

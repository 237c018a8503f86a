"""Any-order training of media spans: every code from the text and any subset of the others (AS-ARM, arXiv 2504.20456).

A share of a span's codes is given, drawn uniformly up to ``most_given``; the rest have an order: ascending, by which
each subset of codes has one way only to be completed (as the authors train), or any (``order="random"``, XLNet's). A
code is predicted from the given ones and from those before it in the order, by a copy of its place that reads the mask
(`streams.py`). Given codes see each other, any other those before it. So one pass gives the joint density of all codes
in that order, which lets the decoder `any-order` (`generation/fast/any_order.py`) draw several at once and correct them
without loss.

The authors train XLNet, whose layers hold two streams; here the second is a copy behind the row, so any base will do.

Shapes: B rows, N tokens, L codes of a span, M codes that are not given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, JsonValue
from torch import Tensor

from unimodal.objectives.next_token import LossConfig
from unimodal.objectives.objective import LossParts
from unimodal.objectives.spans import LearntSpan, leave_out_behind
from unimodal.objectives.streams import Copies, CopiesObjective
from unimodal.objectives.writing import SpanConfig, SpanWriting
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class AnyOrderConfig(SpanConfig):
    """order: of the codes that are not given. most_given: the largest share that is given. mask_id: the row that asks
    for a code, by default ``<|pad|>``.
    """

    order: Literal["ascending", "random"] = "ascending"
    most_given: float = Field(default=0.5, ge=0, lt=1)
    mask_id: int | None = None

    def describe_writing(self) -> SpanWriting:
        settings: dict[str, JsonValue] = {"order": self.order, "mask_id": self.mask_id}
        return SpanWriting(objective="any_order", decoders={"any-order": settings}, token_by_token=self.share < 1)


def draw_ranks(length: int, own: AnyOrderConfig, generator: torch.Generator) -> Tensor:
    """The rank of each code of a span, int64 [L]: 0 for given ones, then 1, 2, … in the order of writing."""
    share = own.most_given * float(torch.rand((), generator=generator))
    shuffled = torch.randperm(length, generator=generator)
    asked = shuffled[int(share * length) :]
    if own.order == "ascending":
        asked = asked.sort().values
    ranks = torch.zeros(length, dtype=torch.int64)
    ranks[asked] = torch.arange(1, len(asked) + 1)
    return ranks


def make_copies(ranks: Tensor, mask_id: int) -> Copies:
    """A mask for each code that is not given; it sees the codes of lower ranks."""
    places = (ranks > 0).nonzero()[:, 0]
    sees = ranks[None] < ranks[places][:, None]
    return Copies(places, torch.full_like(places, mask_id), sees, torch.eye(len(places), dtype=torch.bool))


class AnyOrderLoss(CopiesObjective):
    """Runs packed documents through a causal LM with copies that ask for the codes of one span of each."""

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        cfg: LossConfig | None = None,
        own: AnyOrderConfig | None = None,
    ) -> None:
        self.own: AnyOrderConfig = own or AnyOrderConfig()
        super().__init__(model, vocabulary, cfg, self.own, "any_order", self.own.mask_id)

    def learn(
        self, ids: Tensor, labels: Tensor, position_ids: Tensor, spans: list[LearntSpan]
    ) -> tuple[Tensor, LossParts]:
        """See `SpanObjective.learn`."""
        ranks = [draw_ranks(span.length, self.own, span.generator) for span in spans]
        patterns = [own[None] <= own[:, None] for own in ranks]
        copies = [make_copies(own, self.mask_id) for own in ranks]
        learnt = leave_out_behind(labels, position_ids, spans)
        return self.sum_up(self.score_copies(ids, position_ids, learnt, spans, patterns, copies)[0])

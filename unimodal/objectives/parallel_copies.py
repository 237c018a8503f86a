"""A causal LM that learns to write in parallel without forgetting how it writes: noisy copies beside the codes.

All labels are learnt token by token as ever, under the causal mask. Of one span of a document a noisy copy is read as
well (`streams.py`): its codes are lost with probability t (`noise.py`), t uniform in (0, 1), they see the document
before the span and each other, and the clean code is learnt at each place, times ``weight``. The decoder `next-x` with
``unit="whole"`` then writes all codes from noise in a few passes, and every other decoder, and a stock class, still
writes them one after the other.

This is the adaptation of Emu3.5 (arXiv 2510.26583, "discrete diffusion adaptation"), as far as its report tells: its
training code is not public, and nothing here was held against it.

Shapes: B rows, N tokens, L codes of a span, P labelled tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field, JsonValue
from torch import Tensor

from unimodal.objectives.next_token import LossConfig
from unimodal.objectives.noise import add_noise
from unimodal.objectives.objective import LossParts
from unimodal.objectives.spans import LearntSpan
from unimodal.objectives.streams import Copies, CopiesObjective
from unimodal.objectives.writing import SpanConfig, SpanWriting
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ParallelCopyConfig(SpanConfig):
    """weight: of the copies' loss. wrong: share of the lost codes that hold a random code in place of the mask. steps:
    passes of the decoder. mask_id: the row of a lost code, by default ``<|pad|>``.
    """

    weight: float = Field(default=1.0, gt=0)
    wrong: float = Field(default=0.1, ge=0, le=1)
    steps: int = Field(default=8, ge=1)
    mask_id: int | None = None

    def describe_writing(self) -> SpanWriting:
        settings: dict[str, JsonValue] = {
            "unit": "whole", "wrong": self.wrong, "steps": self.steps, "mask_id": self.mask_id
        }  # fmt: skip
        return SpanWriting(objective="parallel_copies", decoders={"next-x": settings}, token_by_token=True)


class ParallelCopies(CopiesObjective):
    """Runs packed documents through a causal LM with a noisy copy of one span of each."""

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        cfg: LossConfig | None = None,
        own: ParallelCopyConfig | None = None,
    ) -> None:
        self.own: ParallelCopyConfig = own or ParallelCopyConfig()
        super().__init__(model, vocabulary, cfg, self.own, "parallel_copies", self.own.mask_id)

    def learn(
        self, ids: Tensor, labels: Tensor, position_ids: Tensor, spans: list[LearntSpan]
    ) -> tuple[Tensor, LossParts]:
        """See `SpanObjective.learn`. Its parts are those of the labels; `loss_copies` is a metric."""
        patterns = [torch.ones(span.length, span.length, dtype=torch.bool).tril() for span in spans]
        copies = [self.make_copies(ids[span.row, span.places], span) for span in spans]
        losses, of_copies = self.score_copies(ids, position_ids, labels, spans, patterns, copies)
        factors = {str(name): one for name, one in self.cfg.modality_weights.items()}
        once = losses.select(~of_copies).reduce(self.cfg.z_loss, factors)
        again = losses.select(of_copies).reduce(self.cfg.z_loss, factors)
        nats = sum(summed for summed, _ in again.per_block.values())
        parts = self.describe_parts(once.weight, once.per_block, [("loss_copies", (nats, float(again.count)))])
        parts["terms"] = {"tokens": once.total, "copies": self.own.weight * again.total}
        return self.touch_tables(once.total + self.own.weight * again.total), parts

    def make_copies(self, codes: Tensor, span: LearntSpan) -> Copies:
        """The noisy copy of a span's codes [L], which sees itself only."""
        num = span.length
        level = torch.rand((), generator=span.generator).expand(num)
        rows = self.groups.groups[span.block].rows
        noisy = add_noise(codes, level, rows, self.mask_id, self.own.wrong, span.generator)
        return Copies(
            torch.arange(num),
            noisy,
            torch.zeros(num, num, dtype=torch.bool),
            torch.ones(num, num, dtype=torch.bool),
        )

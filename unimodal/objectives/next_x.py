"""Next-X prediction: a picture's codes are learnt entity by entity, from noisy ones before it (xAR, arXiv 2502.20388).

An entity is a cell, a subsample, a scale, a single code, or the whole span (`entities.py`). Each gets a noise level of
its own, the logistic function of a normal number, and its codes are lost with that probability (`noise.py`). Every code
sees the entities before its own and all of its own, as noisy as they are, and its clean value is predicted at its own
place. So what is written is learnt behind a context with errors in it (noisy context learning), and an entity is
written from noise in a few passes (the decoder `next-x`, `generation/fast/next_x.py`).

The paper regresses continuous latents by flow matching; here codes are classified, by flow matching over codes, and the
loss is the cross-entropy of every code of the span. The paper tells the network the level of each entity; here it shows
in the masks, of which a share `wrong` is replaced by random codes, as sampled ones may be wrong (1: no masks at all).

Shapes: B rows, N tokens, L codes of a span.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from pydantic import Field, JsonValue
from torch import Tensor

from unimodal.objectives.entities import Unit, find_span_entities
from unimodal.objectives.next_token import LossConfig
from unimodal.objectives.noise import add_noise, draw_logit_normal
from unimodal.objectives.objective import LossParts
from unimodal.objectives.spans import LearntSpan, SpanObjective, leave_out_behind, list_seen
from unimodal.objectives.writing import SpanConfig, SpanWriting
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class NextXConfig(SpanConfig):
    """unit, size: of the entities. columns: block → codes in a row, where the tokenizer does not say. lengths: block →
    of its scales. wrong: share of the lost codes that hold a random code in place of the mask. steps: passes that the
    decoder takes for an entity. mask_id: the row of a lost code, by default ``<|pad|>``.
    """

    unit: Unit = "cell"
    size: int = Field(default=2, ge=1)
    columns: dict[str, int] = {}
    lengths: dict[str, tuple[int, ...]] = {}
    wrong: float = Field(default=0.1, ge=0, le=1)
    steps: int = Field(default=4, ge=1)
    mask_id: int | None = None

    def describe_writing(self) -> SpanWriting:
        settings: dict[str, JsonValue] = self.model_dump(mode="json", exclude={"share"})
        return SpanWriting(objective="next_x", decoders={"next-x": settings}, token_by_token=self.share < 1)


class NextXLoss(SpanObjective):
    """Runs packed documents through a causal LM with the entities of one span of each noisy.

    columns: block → codes in a row, as the tokenizers say. Raises ValueError as `divide_blocks`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        cfg: LossConfig | None = None,
        own: NextXConfig | None = None,
        columns: Mapping[str, int] | None = None,
    ) -> None:
        self.own: NextXConfig = own or NextXConfig()
        super().__init__(model, vocabulary, cfg, self.own, "next_x", self.own.mask_id)
        known = dict(columns or {}) | self.own.columns
        self.entities = divide_blocks(vocabulary, self.group_of_row, self.own, known)
        self.known = self.entities

    def learn(
        self, ids: Tensor, labels: Tensor, position_ids: Tensor, spans: list[LearntSpan]
    ) -> tuple[Tensor, LossParts]:
        """See `SpanObjective.learn`."""
        read, at_own, patterns = ids.clone(), torch.zeros_like(ids, dtype=torch.bool), []
        for span in spans:
            entity = self.entities[span.block, span.length]
            patterns.append(entity[None] <= entity[:, None])
            read[span.row, span.places] = self.add_noise(ids[span.row, span.places], span)
            at_own[span.row, span.places] = True
        states = self.run_seen(read, position_ids, list_seen(position_ids, spans, patterns))
        learnt = leave_out_behind(labels, position_ids, spans)
        return self.sum_up(self.score_places(states, ids, learnt, position_ids, at_own))

    def add_noise(self, codes: Tensor, span: LearntSpan) -> Tensor:
        """The codes [L] of a span with the noise of their entities."""
        entity = self.entities[span.block, span.length]
        levels = draw_logit_normal(int(entity.max()) + 1, span.generator)[entity]
        rows = self.groups.groups[span.block].rows
        return add_noise(codes, levels, rows, self.mask_id, self.own.wrong, span.generator)


def divide_blocks(
    vocabulary: Vocabulary, group_of_row: Tensor, own: NextXConfig, columns: dict[str, int]
) -> dict[tuple[int, int], Tensor]:
    """The entities [L] of spans, by the group of their block and their length.

    Spans that cannot be divided are left out: they are learnt token by token, and so are pictures in rows with marks.
    Raises ValueError if none can, or if one cannot whose block a setting names.
    """
    found: dict[tuple[int, int], Tensor] = {}
    problems = []
    segments = [one for layout in vocabulary.layouts if layout.grid is None for one in layout.segments]
    for name, count in dict.fromkeys((segment.block, segment.count) for segment in segments):
        group = int(group_of_row[vocabulary.group_blocks(name)[0].start])
        if group <= 0 or count is None:
            continue
        try:
            found[group, count] = find_span_entities(name, count, own.unit, own.size, columns, own.lengths)
        except ValueError as error:
            if name in own.columns or name in own.lengths:
                raise ValueError(f"objective.next_x: {error}") from None
            problems.append(str(error))
    if not found:
        why = problems[0] if problems else "no block is one codebook of a fixed number of codes, without marks"
        raise ValueError(f"objective.next_x: {why}")
    return found

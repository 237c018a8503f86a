"""Masked training of media answers: codes that are hidden in their span, predicted from all that is left of it.

A model so trained draws a medium in few passes (the fast decoder `masked`, `generation/fast/masked_parallel.py`): all
codes of a block at once, the surest are kept. As in MaskGIT (arXiv 2202.04200) and Show-o (arXiv 2408.12528) a share
cos(π/2 · r) of the codes is hidden, r uniform in [0, 1), and only hidden codes are learnt. Inside the run every code
sees every other (`spans.py` says which run). `share` of the documents with such a run are masked, the others are learnt
token by token.

A code is predicted at the place before its own, where the LM predicts it already, so that a trained LM goes on from
what it knows; ``own_place`` predicts it at its own, as both papers do. MaskGIT also smooths its labels by 0.1; Show-o
does not, nor is it done here.

``asymmetric``: codes that are left do not see hidden ones, as ENAT (arXiv 2411.06959) encodes visible tokens by
themselves and lets hidden ones read them. What a code is to the others then no longer depends on how many are hidden,
so a decoder reads each known code once (`masked` with ``reuse``). ENAT also hides a share of Beta(12, 3) of the codes
(``schedule="enat"``), and has layers for hidden codes alone, which a causal LM has not.

A base must let a token see later ones where a mask says so. `check_sees_ahead` tries it.

Shapes: B rows, N tokens, L codes of a span.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Self

import torch
from pydantic import Field, JsonValue, model_validator
from torch import Tensor

from unimodal.objectives.next_token import LossConfig
from unimodal.objectives.objective import LossParts
from unimodal.objectives.spans import LearntSpan, SpanObjective, leave_out_behind, list_seen
from unimodal.objectives.writing import SpanConfig, SpanWriting
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class MaskedCodeConfig(SpanConfig):
    """schedule: of the share of codes hidden, by r uniform in [0, 1): cos(π/2 · r), or 1 - r; or drawn from Beta(12, 3)
    (enat). own_place: predict a code at its own place. asymmetric: codes that are left see no hidden ones. mask_id: the
    row that stands for a hidden code, by default ``<|pad|>``.
    """

    schedule: str = Field(default="cosine", pattern="^(cosine|uniform|enat)$")
    own_place: bool = False
    asymmetric: bool = False
    mask_id: int | None = None

    @model_validator(mode="after")
    def _check_place(self) -> Self:
        if self.asymmetric and not self.own_place:
            raise ValueError(
                "asymmetric goes with own_place: a code that is left says nothing of a hidden one behind it"
            )
        return self

    def describe_writing(self) -> SpanWriting:
        place: dict[str, JsonValue] = {"own_place": self.own_place, "mask_id": self.mask_id}
        decoders: dict[str, dict[str, JsonValue]] = {
            "masked": {"sees_ahead": True, "asymmetric": self.asymmetric, **place}
        }
        if self.asymmetric:
            decoders |= {"enat": {"mask_id": self.mask_id}}
        else:  # they let codes that are known see the masks
            decoders |= {"window-diffusion": place, "explore": place}
        return SpanWriting(objective="masked_codes", decoders=decoders, token_by_token=self.share < 1)


def hide_codes(span: LearntSpan, schedule: str) -> Tensor:
    """The codes of a span that are hidden, bool [L]: at least one."""
    ratio = float(torch.rand((), generator=span.generator))
    if schedule == "enat":
        part = _draw_beta(12, 3, span.generator)
    else:
        part = math.cos(math.pi / 2 * ratio) if schedule == "cosine" else 1 - ratio
    hidden = torch.zeros(span.length, dtype=torch.bool)
    hidden[torch.randperm(span.length, generator=span.generator)[: max(1, int(part * span.length))]] = True
    return hidden


def _draw_beta(a: int, b: int, generator: torch.Generator) -> float:
    """A number of Beta(a, b), for whole a and b: the a-th smallest of a + b - 1 uniform ones."""
    return float(torch.rand(a + b - 1, generator=generator).sort().values[a - 1])


def make_pattern(hidden: Tensor, asymmetric: bool = False) -> Tensor:
    """What each code of a span sees of it, bool [L, L]."""
    if not asymmetric:
        return torch.ones(len(hidden), len(hidden), dtype=torch.bool)
    return hidden[:, None] | ~hidden[None]


class MaskedCodes(SpanObjective):
    """Runs packed documents through a causal LM with one run of codes of each masked."""

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        cfg: LossConfig | None = None,
        own: MaskedCodeConfig | None = None,
    ) -> None:
        self.own: MaskedCodeConfig = own or MaskedCodeConfig()
        super().__init__(model, vocabulary, cfg, self.own, "masked_codes", self.own.mask_id)

    def learn(
        self, ids: Tensor, labels: Tensor, position_ids: Tensor, spans: list[LearntSpan]
    ) -> tuple[Tensor, LossParts]:
        """See `SpanObjective.learn`."""
        hidden_of = [hide_codes(span, self.own.schedule) for span in spans]
        hidden = torch.zeros_like(ids, dtype=torch.bool)
        for span, own in zip(spans, hidden_of, strict=True):
            hidden[span.row, span.places] = own.to(ids.device)
        seen = list_seen(position_ids, spans, [make_pattern(own, self.own.asymmetric) for own in hidden_of])
        learnt = torch.where(hidden, labels, leave_out_behind(labels, position_ids, spans))
        states = self.run_seen(ids.masked_fill(hidden, self.mask_id), position_ids, seen)
        return self.sum_up(self.score_places(states, ids, learnt, position_ids, hidden if self.own.own_place else None))

"""Scores of a summary query (after VTC-CLS, arXiv 2412.05819): keep what the span's summary attends to, in order.

VTC-CLS sums the head-mean attention of the picture encoder's CLS token over late layers. Codes have no CLS token. The
token that closes the span takes its place: it has seen all of the span and nothing behind it. Its attention is summed
over the first layers of the decoder. No question enters, so that the choice can be kept for every question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unimodal.compression.method import Compressor
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.choosing import choose_best


@dataclass
class SummaryQuery(Compressor):
    """Keep what the span's end token attends to, in order (after VTC-CLS, arXiv 2412.05819).

    hidden [B, N, D] → `span.count` tokens by the end token's head-mean attention, summed over layers before the site.
    layer: the site. By default 2, in a shallower model the last layer. Raises ValueError for a layer below 1, on
    entering for one that the model lacks, and for what `Method` refuses.
    """

    paper: ClassVar[str] = "after VTC-CLS, arXiv 2412.05819"

    layer: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer is not None and self.layer < 1:
            raise ValueError(f"layer is {self.layer}; the attention before it is needed, so at least 1")

    def find_sites(self, num_layers: int) -> tuple[int, ...]:
        return (max(1, min(2, num_layers - 1)) if self.layer is None else self.layer,)

    def find_watched_layers(self, num_layers: int) -> tuple[int, ...]:
        return tuple(range(self.find_sites(num_layers)[0]))

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        scores = torch.stack([span.measure_attention("summary", layer) for layer in range(span.layer)]).sum(0)
        return Plan(choose_best(scores, span.count))

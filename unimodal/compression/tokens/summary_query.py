"""Scores of a summary query (after VTC-CLS, arXiv 2412.05819): keep what the span's summary attends to, in order.

VTC-CLS sums the head-mean attention of the encoder's CLS token over late layers. Codes have no CLS token; the token
that closes the span has seen all of it and nothing behind it, and its attention over the first layers of the decoder
takes that place: no question enters, so that the choice can be kept for every question.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unimodal.compression.method import Compressor, Plan, Span
from unimodal.compression.tokens.choosing import best


@dataclass
class SummaryQuery(Compressor):
    """layer: the site; the attention of the layers before it is summed. By default 2, in a shallower model the last."""

    layer: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer is not None and self.layer < 1:
            raise ValueError(f"layer is {self.layer}; the attention before it is needed, so at least 1")

    def layers(self, num_layers: int) -> tuple[int, ...]:
        return (max(1, min(2, num_layers - 1)) if self.layer is None else self.layer,)

    def watches(self, num_layers: int) -> tuple[int, ...]:
        return tuple(range(self.layers(num_layers)[0]))

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        scores = torch.stack([span.received("summary", layer) for layer in range(span.layer)]).sum(0)
        return Plan(best(scores, span.count))

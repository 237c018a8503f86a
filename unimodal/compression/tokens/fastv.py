"""FastV (arXiv 2403.06764): after layer K, keep the tokens that the last token of the prompt attends to most."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unimodal.compression.method import Compressor, Plan, Span
from unimodal.compression.tokens.choosing import best


@dataclass
class FastV(Compressor):
    """layer: K, prune before this layer by the head-mean attention of the one before it. By default 2, in a shallower
    model the last."""

    layer: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer is not None and self.layer < 1:
            raise ValueError(f"layer is {self.layer}; FastV needs the attention of a layer before it, so at least 1")

    def layers(self, num_layers: int) -> tuple[int, ...]:
        return (max(1, min(2, num_layers - 1)) if self.layer is None else self.layer,)

    def watches(self, num_layers: int) -> tuple[int, ...]:
        return (self.layers(num_layers)[0] - 1,)

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        return Plan(best(span.received("last"), span.count))

"""FastV (arXiv 2403.06764): after layer K, keep the tokens that the last token of the prompt attends to most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from unimodal.compression.method import Compressor
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.choosing import choose_best


@dataclass
class FastV(Compressor):
    """Keep the tokens that the last token of the prompt attends to most (FastV, arXiv 2403.06764).

    hidden [B, N, D] → `span.count` tokens by the head-mean attention of the layer before the site.
    layer: the site K, pruning happens before layer K. By default 2, in a shallower model the last layer.
    Raises ValueError for a layer below 1, on entering for one that the model lacks, and for what `Method` refuses.
    """

    paper: ClassVar[str] = "FastV, arXiv 2403.06764"

    layer: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer is not None and self.layer < 1:
            raise ValueError(f"layer is {self.layer}; FastV needs the attention of a layer before it, so at least 1")

    def find_sites(self, num_layers: int) -> tuple[int, ...]:
        return (max(1, min(2, num_layers - 1)) if self.layer is None else self.layer,)

    def find_watched_layers(self, num_layers: int) -> tuple[int, ...]:
        return (self.find_sites(num_layers)[0] - 1,)

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        return Plan(choose_best(span.measure_attention("last"), span.count))

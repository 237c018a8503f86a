"""PyramidDrop (arXiv 2410.17247): drop a part of the tokens at the end of each of four stages of the decoder.

All tokens matter in shallow layers, fewer and fewer in deeper ones. Before layers 8, 16 and 24 of 32 (other depths are
in proportion) the last token of the prompt, by the coming layer's queries and keys, ranks the tokens, and a fixed part
of them stays. The authors keep half at each stage: this is `keep=0.125`, an eighth at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from unimodal.compression.method import Compressor
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.choosing import choose_best
from unimodal.compression.tokens.stages import count_evenly, place_sites

DEPTHS = (1 / 4, 1 / 2, 3 / 4)  # of the sites


@dataclass
class PyramidDrop(Compressor):
    """Keep what the last token attends to, fewer in every stage (PyramidDrop, arXiv 2410.17247).

    hidden [B, N, D] → `span.count` tokens by the last token's head-mean attention in the coming layer. `keep` is the
    share behind the last stage. Raises ValueError on entering for a model of one layer, and for what `Method` refuses.
    """

    paper: ClassVar[str] = "PyramidDrop, arXiv 2410.17247"
    judges_rows: ClassVar[bool] = True
    previews: ClassVar[bool] = True

    def find_sites(self, num_layers: int) -> tuple[int, ...]:
        return place_sites(DEPTHS, num_layers)

    def count_kept(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        """The same part of what is left at every stage, so that `keep` is left behind the last."""
        return count_evenly(spans, self.find_sites(num_layers), self.keep)

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        return Plan(choose_best(span.measure_attention("last", span.layer), span.count))

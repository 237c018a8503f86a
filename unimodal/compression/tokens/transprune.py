"""TransPrune (arXiv 2507.20630): keep the tokens whose representation changes most on its way through the layers.

A token's transition in a module (attention or feed-forward) is how much its length grows times how much it turns:
(‖out‖ / ‖in‖) · softmax over the row's tokens of (1 − cos(out, in)), between the module's own input and output.
Transitions are summed over the layers before each stage and added to the attention that all words behind the span pay
in the layer behind the stage; both are normalised over the span's tokens and count alike. In a decoder of 32 layers
tokens go before layers 7, 9 and 12 (numbered from 0), and transitions count from layer 6 on; other depths are in
proportion. The authors keep 0.875, 0.625 and 0.125 of the tokens: this is `keep=0.125`. Other shares lie on the line to
1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from unimodal.compression.method import Compressor
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.choosing import choose_best
from unimodal.compression.tokens.stages import count_by_ratios, place_sites

DEPTHS = (7 / 32, 9 / 32, 12 / 32)  # of the sites
RATIOS = (0.875, 0.625, 0.125)  # kept at each site


@dataclass
class TransPrune(Compressor):
    """Keep the tokens that change most on their way, in three stages (TransPrune, arXiv 2507.20630).

    hidden [B, N, D] → `span.count` tokens by transitions plus `attention_weight` times the words' attention.
    attention_weight: 0 turns the attention off. Raises ValueError on entering for a model of one layer, and for what
    `Method` refuses.
    """

    paper: ClassVar[str] = "TransPrune, arXiv 2507.20630"
    judges_rows: ClassVar[bool] = True
    previews: ClassVar[bool] = True

    attention_weight: float = 1.0

    def find_sites(self, num_layers: int) -> tuple[int, ...]:
        return place_sites(DEPTHS, num_layers)

    def find_changing_layers(self, num_layers: int) -> tuple[int, ...]:
        sites = self.find_sites(num_layers)
        return tuple(range(sites[0] - 1, sites[-1]))

    def count_kept(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        """The stage's share: the published ratios moved in proportion, so that the last one is `keep`."""
        return count_by_ratios(spans, self.find_sites(num_layers), RATIOS, self.keep)

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        scores = _normalise(span.measure_transitions())
        if self.attention_weight:
            scores = scores + self.attention_weight * _normalise(span.measure_attention("after", span.layer))
        return Plan(choose_best(scores, span.count))


def _normalise(scores: Tensor) -> Tensor:
    return scores / scores.sum(-1, keepdim=True).clamp_min(1e-8)

"""TransPrune (arXiv 2507.20630): keep the tokens whose representation changes most on its way through the layers.

A token's transition in a module (attention or feed-forward) is how much its length grows times how much it turns:
(‖out‖ / ‖in‖) · softmax over tokens of (1 − cos(out, in)). Transitions are summed over the layers up to each stage and
added to the attention that the words behind the span pay; both are normalised over the tokens. Tokens go in three
stages, behind the depths that layers 7, 9 and 12 have among 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from unimodal.compression.method import Compressor
from unimodal.compression.plan import Plan, Span, count_share
from unimodal.compression.tokens.choosing import choose_best

DEPTHS = (8 / 32, 10 / 32, 13 / 32)  # of the sites, each before the layer that follows layer 7, 9 or 12


@dataclass
class TransPrune(Compressor):
    """Keep the tokens that change most on their way, in three stages (TransPrune, arXiv 2507.20630).

    hidden [B, N, D] → `span.count` tokens by transitions plus `attention_weight` times the words' attention.
    attention_weight: 0 turns the attention off. Raises ValueError on entering for a model of one layer, and for what
    `Method` refuses.
    """

    paper: ClassVar[str] = "TransPrune, arXiv 2507.20630"
    judges_rows: ClassVar[bool] = True

    attention_weight: float = 0.5

    def find_sites(self, num_layers: int) -> tuple[int, ...]:
        return tuple(sorted({max(1, min(round(depth * num_layers), num_layers - 1)) for depth in DEPTHS}))

    def find_watched_layers(self, num_layers: int) -> tuple[int, ...]:
        return tuple(layer - 1 for layer in self.find_sites(num_layers))

    def find_changing_layers(self, num_layers: int) -> tuple[int, ...]:
        sites = self.find_sites(num_layers)
        return tuple(range(sites[0] - 1, sites[-1]))

    def count_kept(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        """The same ratio from stage to stage, so that the last one keeps the share `keep`."""
        sites = self.find_sites(num_layers)
        return [
            min(len(span), count_share(self.keep ** ((sites.index(span.layer) + 1) / len(sites)), span.original))
            for span in spans
        ]

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        scores = _normalise(span.measure_transitions())
        scores = scores + self.attention_weight * _normalise(span.measure_attention("after"))
        return Plan(choose_best(scores, span.count))


def _normalise(scores: Tensor) -> Tensor:
    return scores / scores.sum(-1, keepdim=True).clamp_min(1e-9)

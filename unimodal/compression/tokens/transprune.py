"""TransPrune (arXiv 2507.20630): keep the tokens whose representation changes most on its way through the layers.

A token's transition in a module (attention or feed-forward) is how much its length grows times how much it turns:
(‖out‖ / ‖in‖) · softmax over tokens of (1 − cos(out, in)). It is summed over the layers up to each stage and joined
with the attention of the words behind the span, both normalised over the tokens. Tokens go in three stages, at the
depths that layers 7, 9 and 12 have among 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from unimodal.compression.method import Compressor, Plan, Span, share
from unimodal.compression.tokens.choosing import best

DEPTHS = (8 / 32, 10 / 32, 13 / 32)  # before the layer behind 7, 9 and 12


@dataclass
class TransPrune(Compressor):
    """attention_weight: of the words' attention beside the transitions."""

    attention_weight: float = 0.5

    def layers(self, num_layers: int) -> tuple[int, ...]:
        return tuple(sorted({max(1, min(round(depth * num_layers), num_layers - 1)) for depth in DEPTHS}))

    def watches(self, num_layers: int) -> tuple[int, ...]:
        return tuple(layer - 1 for layer in self.layers(num_layers))

    def transitions_of(self, num_layers: int) -> tuple[int, ...]:
        sites = self.layers(num_layers)
        return tuple(range(sites[0] - 1, sites[-1]))

    def counts(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        """Equal ratios from stage to stage, the asked share at the last."""
        sites = self.layers(num_layers)
        return [
            min(len(span), share(self.keep ** ((sites.index(span.layer) + 1) / len(sites)), span.original))
            for span in spans
        ]

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        scores = _normalised(span.transitions())
        scores = scores + self.attention_weight * _normalised(span.received("after"))
        return Plan(best(scores, span.count))


def _normalised(scores: Tensor) -> Tensor:
    return scores / scores.sum(-1, keepdim=True).clamp_min(1e-9)

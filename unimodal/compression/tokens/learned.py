"""Methods on tokens with a part that is trained: how they refuse without it, and learn to choose.

A choice of tokens has no gradient. In training each kept token is therefore multiplied by 1, whose gradient is that of
its score's sigmoid (a straight-through estimate): a score rises where more of its token would have helped.

Shapes: B spans, N tokens, M chosen, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unimodal.compression.learned import LearnedMethod
from unimodal.compression.method import Compressor
from unimodal.compression.plan import Plan
from unimodal.compression.tokens.choosing import choose_best


@dataclass
class LearnedCompressor(LearnedMethod, Compressor):
    """A method on tokens with a module that is trained for one decoder."""

    def check(self, num_layers: int) -> None:
        super().check(num_layers)
        self.check_part()


def choose_learned(scores: Tensor, count: int, hidden: Tensor) -> Plan:
    """Keep the M = `count` tokens of hidden [B, N, D] with the best scores [B, N], which learn by it in training."""
    index = choose_best(scores.detach(), count)
    if not scores.requires_grad:
        return Plan(index)
    gate = scores.sigmoid().gather(1, index)[..., None]
    kept = hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))
    return Plan(index, states=kept * (1 + (gate - gate.detach())).to(kept.dtype))

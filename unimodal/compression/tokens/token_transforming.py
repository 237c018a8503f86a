"""Token Transforming (arXiv 2506.05709): one matrix product Y = W X with a dense W, many tokens to many.

Pruning is the case of one-hot rows, merging of disjoint rows. Here every token shares itself out over all anchors by
similarity, so that nothing is lost and nothing counted twice: columns of the shares sum to 1, rows are then normalised
to means and their sums are the sizes. The anchors are the tokens that differ most (the choice of DivPrune); at a low
temperature the matrix becomes that of merging into the nearest anchor.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from unimodal.compression.method import Compressor, Plan, Span
from unimodal.compression.tokens.choosing import cosine
from unimodal.compression.tokens.divprune import most_diverse


@dataclass
class TokenTransforming(Compressor):
    """Share every token out over the anchors by softmax(cosine / temperature)."""

    temperature: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}; give a number above 0")

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        similar = cosine(hidden)  # [B, N, N]
        index = most_diverse(1 - similar, span.count)
        to_anchors = similar.gather(1, index[..., None].expand(-1, -1, len(span)))  # [B, M, N]
        shares = (to_anchors / self.temperature).softmax(1) * span.sizes[:, None]
        sizes = shares.sum(-1)
        return Plan(index, shares / sizes[..., None], sizes=sizes)

"""Token Transforming (arXiv 2506.05709): one matrix product Y = W X with a dense W, many tokens to many.

Pruning is the case where the rows of W are one-hot, merging the case where they are disjoint. Here every token shares
itself out over all anchors by similarity, so that nothing is lost and nothing counted twice: the shares of a token sum
to 1. The shares of an anchor, divided by their sum, are its row of W, and their sum is its size. The anchors are the
tokens that differ most (the choice of DivPrune); at a low temperature every token merges into its nearest anchor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from unimodal.compression.method import Compressor
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.choosing import compute_cosines
from unimodal.compression.tokens.divprune import choose_most_diverse


@dataclass
class TokenTransforming(Compressor):
    """Share every token out over the anchors by softmax(cosine / temperature) (Token Transforming, arXiv 2506.05709).

    hidden [B, N, D] → `span.count` weighted means with their sizes. temperature: above 0, lower ones merge harder.
    Raises ValueError for a temperature that is not above 0, and for what `Method` refuses.
    """

    paper: ClassVar[str] = "Token Transforming, arXiv 2506.05709"

    temperature: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}; give a number above 0")

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        similar = compute_cosines(hidden)  # [B, N, N]
        index = choose_most_diverse(1 - similar, span.count)
        to_anchors = similar.gather(1, index[..., None].expand(-1, -1, len(span)))  # [B, M, N]
        shares = (to_anchors / self.temperature).softmax(1) * span.sizes[:, None]
        sizes = shares.sum(-1)
        return Plan(index, shares / sizes[..., None], sizes=sizes)

"""p-MoD (arXiv 2412.04449): in every layer a router says which tokens go through it; the others skip it.

A linear router of each layer scores the tokens; the best go through, fewer from layer to layer along a cosine. With w =
0.2 · tanh(score) + 1 the output of the feed-forward is multiplied by w for those, and the whole state for those that
skip (symmetric reweighting, by which the router learns). The cache of a layer holds the tokens that went through it.
The share of a layer is cos(π · layer / last layer) / 2 + `keep`, between nothing and all, so that `keep` is about the
mean; the authors' is 0.5. Routers are trained with the decoder, and the method refuses without them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.compression.learned import DecoderShape, check_layers, check_width
from unimodal.compression.plan import Plan, Return, Span
from unimodal.compression.tokens.choosing import choose_best
from unimodal.compression.tokens.learned import LearnedCompressor

SCALE = 0.2


class TokenRouters(nn.Module):
    """A linear score for each layer; zero at first."""

    def __init__(self, width: int, num_layers: int = 1) -> None:
        super().__init__()
        self.width, self.num_layers = width, num_layers
        self.layers = nn.ModuleList([nn.Linear(width, 1) for _ in range(num_layers)])
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=1e-3)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, layer: int) -> Tensor:
        """x [B, N, D] → scores [B, N]."""
        return self.layers[layer](x)[..., 0]


@dataclass
class PMoD(LearnedCompressor):
    """Let a router choose in every layer which tokens go through it (p-MoD, arXiv 2412.04449).

    hidden [B, N, D] → `span.count` tokens in a layer, all N behind it. routers: trained with the decoder. Raises
    ValueError on entering without them, for a decoder of another width or of more layers, and for what `Method`
    refuses.
    """

    paper: ClassVar[str] = "p-MoD, arXiv 2412.04449"
    part: ClassVar[str] = "routers"
    judges_rows: ClassVar[bool] = True

    routers: TokenRouters | None = field(default=None, repr=False)

    @classmethod
    def make_part(cls, shape: DecoderShape) -> TokenRouters:
        return TokenRouters(shape.width, shape.num_layers)

    def check(self, num_layers: int) -> None:
        super().check(num_layers)
        if self.routers is not None:
            check_layers(self.routers.num_layers, num_layers, self.part)

    def find_sites(self, num_layers: int) -> tuple[int, ...]:
        return tuple(range(num_layers))

    def count_kept(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        counts = []
        for span in spans:
            share = math.cos(math.pi * span.layer / max(num_layers - 1, 1)) / 2 + self.keep
            share = 1.0 if self.keep == 1 else min(1.0, max(0.0, share))
            counts.append(min(len(span), max(1, math.trunc(len(span) * share))))
        return counts

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        assert self.routers is not None
        check_width(self.routers.width, hidden)
        scores = self.routers(hidden, span.layer)
        weight = SCALE * scores.tanh() + 1  # [B, N]
        index = choose_best(scores.detach(), span.count)
        chosen = F.one_hot(index, len(span)).to(hidden)  # [B, M, N]
        skips = 1 - chosen.sum(1)
        back = Return(span.layer + 1, chosen.transpose(1, 2), skips * weight)
        return Plan(index, gates=weight.gather(1, index), back=back)

"""Summarised patch tokens (MULTI-LANE, arXiv 2405.15633): a few learned selectors average a span by likeness.

A selector is a vector of the decoder's width. Its softmax over the tokens, by their products with it, is what it takes
of each, and the sums go on in place of the tokens. The paper has a lane of selectors, prompts and a head for every task
that is learned after another; here there is one lane, and the decoder is what follows. A smaller share takes the first
selectors. They are trained with the decoder, and the method refuses without them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from unimodal.compression.learned import DecoderShape, check_width
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.learned import LearnedCompressor
from unimodal.compression.tokens.stride import choose_evenly


class PatchSelectors(nn.Module):
    """Vectors [S, D] that select by their products."""

    def __init__(self, width: int, num_selectors: int = 64) -> None:
        super().__init__()
        self.width = width
        self.vectors = nn.Parameter(torch.randn(num_selectors, width))

    def forward(self, x: Tensor, count: int) -> Tensor:
        """x [B, N, D] → the sums [B, M, D] of the first M = `count` selectors; further ones begin again."""
        chosen = self.vectors[torch.arange(count, device=x.device) % len(self.vectors)]
        return (chosen @ x.transpose(1, 2) * self.width**-0.5).softmax(-1) @ x


@dataclass
class PatchSummary(LearnedCompressor):
    """Keep the averages of learned selectors (MULTI-LANE, arXiv 2405.15633).

    hidden [B, N, D] → `span.count` averages at even places. selectors: trained with the decoder. Raises ValueError on
    entering without them, for a decoder of another width, and for what `Method` refuses.
    """

    paper: ClassVar[str] = "MULTI-LANE, arXiv 2405.15633"
    part: ClassVar[str] = "selectors"

    selectors: PatchSelectors | None = field(default=None, repr=False)

    @classmethod
    def make_part(cls, shape: DecoderShape) -> PatchSelectors:
        return PatchSelectors(shape.width)

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        assert self.selectors is not None
        check_width(self.selectors.width, hidden)
        return Plan(choose_evenly(len(span), span.count, hidden), states=self.selectors(hidden, span.count))

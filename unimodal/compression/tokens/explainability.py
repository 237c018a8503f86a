"""Token compression by explanations (arXiv 2506.01097): a small convolution says from the first layer who will matter.

Explanations of a whole model, made of its attention and gradients, say which tokens an answer stood on. They cost a
pass of the model and one back, so the authors train a light convolutional network to tell them from the attention of
the first layer, and drop the others before the model reads them. Here it sees the attention that all words behind the
span, and the last token, pay in the first layer, whose queries and keys are computed beforehand. It is trained by what
the model's answers lose, not to repeat an explanation, and the method refuses without it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from unimodal.compression.learned import DecoderShape
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.learned import LearnedCompressor, choose_learned


class RelevanceMap(nn.Module):
    """Two convolutions along a span: the words' attention and the last token's → relevance."""

    def __init__(self, width: int = 16, kernel: int = 5) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(2, width, kernel, padding=kernel // 2),
            nn.GELU(),
            nn.Conv1d(width, 1, kernel, padding=kernel // 2),
        )

    def forward(self, attention: Tensor) -> Tensor:
        """attention [B, 2, N], of tokens on their mean → relevance [B, N]."""
        return self.layers(attention)[:, 0]


@dataclass
class Explainability(LearnedCompressor):
    """Keep what a learned map of the first layer's attention calls relevant (compression by explanations, arXiv
    2506.01097).

    hidden [B, N, D] → `span.count` tokens. relevance: trained with the decoder. Raises ValueError on entering without
    it, and for what `Method` refuses.
    """

    paper: ClassVar[str] = "Compression by explanations, arXiv 2506.01097"
    part: ClassVar[str] = "relevance"
    previews: ClassVar[bool] = True

    relevance: RelevanceMap | None = field(default=None, repr=False)

    @classmethod
    def make_part(cls, shape: DecoderShape) -> RelevanceMap:
        return RelevanceMap()

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        assert self.relevance is not None
        seen = torch.stack([span.measure_attention("after", span.layer), span.measure_attention("last", span.layer)], 1)
        seen = seen / seen.mean(-1, keepdim=True).clamp_min(1e-9) - 1
        return choose_learned(self.relevance(seen.to(hidden.dtype)), span.count, hidden)

"""TokenFLEX (arXiv 2504.03154): one projector for any number of tokens, trained with a random number at each step.

The span is pooled to n windows and passed through a SwiGLU projector, which is trained with the decoder; without one
the method refuses, since plain pooling is another row of the table. Here the projector adds to the pooled tokens and is
zero at first. As published a pooled token counts once in the attention. In training:

    flex = TokenFLEX(projector=FlexProjector(width))
    with flex.draw(generator)(model, vocabulary):  # another number of tokens in every step
        loss = ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.compression.learned import DecoderShape, check_width
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.learned import LearnedCompressor
from unimodal.compression.tokens.pooling import pool_span

SHARES = (0.25, 0.5, 1.0)  # 64, 144 and 256 tokens in the paper


class FlexProjector(nn.Module):
    """SwiGLU behind a norm, [..., D] → [..., D]; zero at first."""

    def __init__(self, width: int, hidden_width: int | None = None) -> None:
        super().__init__()
        inner, self.width = hidden_width or 2 * width, width
        self.norm = nn.LayerNorm(width)
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return self.down(F.silu(self.gate(h)) * self.up(h))


@dataclass
class TokenFLEX(LearnedCompressor):
    """Pool to any number of tokens, and pass them through a learned projector (TokenFLEX, arXiv 2504.03154).

    hidden [B, N, D] → `span.count` means, plus the projector's output for each. projector: trained with the decoder.
    counts_sizes: log(size) is added to the attention over pooled tokens. Raises ValueError on entering without a
    projector, for a decoder of another width, and for what `Method` refuses.
    """

    paper: ClassVar[str] = "TokenFLEX, arXiv 2504.03154"
    part: ClassVar[str] = "projector"

    projector: FlexProjector | None = field(default=None, repr=False)
    counts_sizes: bool = False

    @classmethod
    def make_part(cls, shape: DecoderShape) -> FlexProjector:
        return FlexProjector(shape.width)

    def draw(self, generator: torch.Generator, shares: Sequence[float] = SHARES) -> TokenFLEX:
        """The same method with one of the shares drawn by `generator`, for one training step."""
        pick = int(torch.randint(len(shares), (1,), generator=generator))
        return replace(self, keep=shares[pick])

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        assert self.projector is not None
        check_width(self.projector.width, hidden)
        plan = pool_span(hidden, span, span.count)
        assert plan.merge is not None
        states = plan.merge.to(hidden.dtype) @ hidden  # [B, M, D]
        sizes = plan.sizes if self.counts_sizes else None
        return replace(plan, merge=None, states=states + self.projector(states), sizes=sizes)

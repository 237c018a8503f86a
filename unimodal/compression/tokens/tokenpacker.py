"""TokenPacker (arXiv 2407.02392): coarse tokens that take in what is fine in their own region.

The span is interpolated to few tokens, which are the queries. Each attends to the tokens of its own window alone, whose
keys and values are two layers of their own (region to point), and an MLP follows. It is trained with the decoder, and
refuses untrained. In the paper keys and values come from several levels of a picture encoder; codes have one, their
embeddings. Here the result is added to the interpolated tokens and is zero at first, so that training begins at
downsampling.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.compression.learned import DecoderShape, check_width
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.grids import average_line, interpolate_line, map_runs
from unimodal.compression.tokens.learned import LearnedCompressor


class RegionInjector(nn.Module):
    """Attention of coarse tokens to their own windows, and an MLP; zero at first."""

    def __init__(self, width: int, num_heads: int = 4) -> None:
        super().__init__()
        self.width, self.num_heads = width, num_heads
        self.query = nn.Linear(width, width, bias=False)
        self.key, self.value = (
            nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)) for _ in range(2)
        )
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        nn.init.zeros_(self.mlp[2].weight)
        nn.init.zeros_(self.mlp[2].bias)

    def forward(self, coarse: Tensor, fine: Tensor, inside: Tensor) -> Tensor:
        """coarse [B, M, D], fine [B, N, D], inside bool [M, N], the window of each → what is added, [B, M, D]."""
        projected = (self.query(coarse), self.key(fine), self.value(fine))
        q, k, v = (
            norm(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for norm, x in zip(self.norms, projected, strict=True)
        )
        return self.mlp(self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=inside).transpose(1, 2).flatten(2)))


@dataclass
class TokenPacker(LearnedCompressor):
    """Interpolate, and let each token attend to its own window (TokenPacker, arXiv 2407.02392).

    hidden [B, N, D] → `span.count` tokens. packer: trained with the decoder. Raises ValueError on entering without it,
    for a decoder of another width, and for what `Method` refuses.
    """

    paper: ClassVar[str] = "TokenPacker, arXiv 2407.02392"
    part: ClassVar[str] = "packer"

    packer: RegionInjector | None = field(default=None, repr=False)

    @classmethod
    def make_part(cls, shape: DecoderShape) -> RegionInjector:
        return RegionInjector(shape.width)

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        assert self.packer is not None
        check_width(self.packer.width, hidden)
        is_raster = span.modality != "audio"
        coarse, _ = map_runs(span.segments, span.count, is_raster, interpolate_line)
        windows, index = map_runs(span.segments, span.count, is_raster, average_line)
        points = coarse.to(hidden) @ hidden  # [B, M, D]
        states = points + self.packer(points, hidden, (windows > 0).to(hidden.device))
        return Plan(index.to(hidden.device).expand(len(hidden), -1), states=states)

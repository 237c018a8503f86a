"""Latents of groups (FIT, arXiv 2305.12689): tokens are mixed within groups, and a few latents carry each group on.

FIT cuts a sequence into groups. Local layers mix the tokens of a group; latents, a few for each group, read them by
cross-attention, and global layers mix all latents. Here the decoder's layers are the global ones: one local layer and
one reading come before it, and the latents stand in the places of their group's tokens. FIT writes back from the
latents to the tokens and repeats; a decoder that has read a medium needs its tokens no more. Latents and layers are
trained with the decoder, and the method refuses without them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.compression.learned import DecoderShape, check_width
from unimodal.compression.method import check_whole
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.grids import allot
from unimodal.compression.tokens.learned import LearnedCompressor
from unimodal.compression.tokens.stride import choose_evenly


class CrossAttention(nn.Module):
    """x + attention of x to y, then x + MLP, both behind norms."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.pair = nn.Linear(width, width, bias=False), nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x [B, M, D], y [B, N, D] → [B, M, D]."""
        read = self.norms[1](y)
        heads = (self.query(self.norms[0](x)), *self.pair(read).chunk(2, -1))
        q, k, v = (h.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for h in heads)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[2](x))


class GroupReader(nn.Module):
    """A local layer, and latents that read what it gives."""

    def __init__(self, width: int, num_latents: int = 64, num_heads: int = 4) -> None:
        super().__init__()
        self.width = width
        self.latents = nn.Parameter(torch.randn(num_latents, width) * 0.02)
        self.local, self.reading = CrossAttention(width, num_heads), CrossAttention(width, num_heads)

    def forward(self, group: Tensor, count: int) -> Tensor:
        """The tokens of a group [B, n, D] → its first M = `count` latents [B, M, D]; further ones begin again."""
        latents = self.latents[torch.arange(count, device=group.device) % len(self.latents)]
        return self.reading(latents.expand(len(group), -1, -1), self.local(group, group))


@dataclass
class FIT(LearnedCompressor):
    """Let the latents of groups go on in place of their tokens (FIT, arXiv 2305.12689).

    hidden [B, N, D] → `span.count` latents. groups: of a span, of even lengths. reader: trained with the decoder.
    Raises ValueError for less than one group, on entering without a reader, for a decoder of another width, and for
    what `Method` refuses.
    """

    paper: ClassVar[str] = "FIT, arXiv 2305.12689"
    part: ClassVar[str] = "reader"

    groups: int = 4
    reader: GroupReader | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("groups", self.groups, 1)

    @classmethod
    def make_part(cls, shape: DecoderShape) -> GroupReader:
        return GroupReader(shape.width)

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        assert self.reader is not None
        check_width(self.reader.width, hidden)
        groups = min(self.groups, span.count)
        lengths = allot(len(span), [1] * groups)
        parts = zip(hidden.split(lengths, 1), allot(span.count, lengths), strict=True)
        states = torch.cat([self.reader(group, count) for group, count in parts if count], 1)
        return Plan(choose_evenly(len(span), span.count, hidden), states=states)

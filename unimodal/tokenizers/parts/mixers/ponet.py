"""PoNet (arXiv 2110.02442): tokens mixed by pooling over all of them, over their segment and over their neighbours.

Five linear maps of the tokens are pooled. The mean of the queries attends, in heads, to all keys, which are the values
too: one vector of the whole. The maximum over a segment of the sequence is one of the segment, the maximum over a
window of three one of the neighbourhood. They are fused as (whole + segment) · own + neighbourhood, element by element,
and a linear map follows. The cost is linear in the tokens.

Authors' segments are sentences, or equal pieces of a sequence; here they are given, such as the rows of a picture.

Shapes: B batch, N tokens, D width, S segments, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, max_pool1d

LOWEST = -10000.0  # what a token that is not there has in a maximum, as in the authors' code


class PoolingMixing(nn.Module):
    """[B, N, D] → what pooling gives each token, [B, N, D].

    segments: how many tokens each has, in the order of the sequence; of a shorter sequence the last ones are missing.
    ValueError for heads that do not divide the width.
    """

    def __init__(self, width: int, num_heads: int, segments: Sequence[int]):
        super().__init__()
        if width % num_heads:
            raise ValueError(f"{num_heads} heads do not divide a width of {width}; choose heads that do")
        self.num_heads, self.num_segments = num_heads, len(segments)
        self.query, self.key, self.own, self.segment, self.neighbours, self.out = (
            nn.Linear(width, width) for _ in range(6)
        )
        self.segment_of: Tensor
        index = torch.repeat_interleave(torch.arange(len(segments)), torch.tensor(list(segments)))
        self.register_buffer("segment_of", index, persistent=False)  # int64 [longest N]

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """real: bool [B, N], False where a token is not there; None where all are. ValueError for too many tokens."""
        num = x.shape[1]
        if num > len(self.segment_of):
            raise ValueError(f"the segments of PoNet are {len(self.segment_of)} tokens; got {num}")
        query, key = (layer(x).unflatten(2, (self.num_heads, -1)) for layer in (self.query, self.key))
        segment, neighbours = self.segment(x), self.neighbours(x)
        if real is None:
            mean, missing = query.mean(1), None
        else:
            missing = ~real[..., None]  # [B, N, 1]
            mean = query.masked_fill(missing[..., None], 0).sum(1) / real.sum(1)[:, None, None]  # [B, H, D / H]
            segment, neighbours = segment.masked_fill(missing, LOWEST), neighbours.masked_fill(missing, LOWEST)
        scores = torch.einsum("bhd,bnhd->bhn", mean, key) * mean.shape[-1] ** -0.5
        if missing is not None:
            scores = scores.masked_fill(missing.transpose(1, 2), float("-inf"))
        whole = torch.einsum("bhn,bnhd->bhd", scores.softmax(-1), key).flatten(1)  # [B, D]
        index = self.segment_of[:num]
        places = index[:, None].expand_as(segment)
        highest = segment.new_full((len(x), self.num_segments, segment.shape[2]), LOWEST)
        highest = highest.scatter_reduce(1, places, segment, "amax", include_self=False)  # [B, S, D]
        near = max_pool1d(neighbours.transpose(1, 2), 3, stride=1, padding=1).transpose(1, 2)
        mixed = (whole[:, None] + highest[:, index]) * self.own(x) + near
        return self.out(mixed if missing is None else mixed.masked_fill(missing, 0))


class PoNetBlock(nn.Module):
    """The mixing and a GELU feed-forward, each behind a norm, residual: [B, N, D] → [B, N, D].

    inner: width of the feed-forward layer. Norms lie before, as in the authors' code for long sequences; their
    BERT has them behind.
    """

    def __init__(self, width: int, num_heads: int, segments: Sequence[int], inner: int):
        super().__init__()
        self.norm_mixer, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixer = PoolingMixing(width, num_heads, segments)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: bool [B, 1, 1, N] as attention takes it, False where a token is not there."""
        x = x + self.mixer(self.norm_mixer(x), None if mask is None else mask[:, 0, 0].expand(len(x), -1))
        return x + self.down(gelu(self.up(self.norm_mlp(x))))

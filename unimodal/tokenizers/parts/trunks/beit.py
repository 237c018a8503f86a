"""Transformer blocks under BEiT's names of weights (arXiv 2106.08254), which EVA and TokenFlow's decoder keep.

Shapes: B batch, N tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from unimodal.tokenizers.parts.trunks.timm_vit import FeedForward

EPS = 1e-6


class BiasedAttention(nn.Module):
    """Attention whose queries and values have a bias and whose keys have none."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        parts = linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        return self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class BeitBlock(nn.Module):
    """Attention and a GELU feed-forward of `inner` units, each after a norm, residual: [B, N, D] → [B, N, D]."""

    def __init__(self, width: int, num_heads: int, inner: int):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, EPS), BiasedAttention(width, num_heads)
        self.norm2, self.mlp = nn.LayerNorm(width, EPS), FeedForward(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))

"""Projections by attention between a trunk's width and the few dimensions of codes.

UniTok (arXiv 2502.20321) and DualToken (2503.14324) have them on both sides of their quantizers.

Shapes: B batch, N positions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d, linear, scaled_dot_product_attention

from unimodal.tokenizers.parts.trunks.vitamin import GatedForward


class ResizingAttention(nn.Module):
    """Attention that changes the width: heads are averaged on the way down and put side by side on the way up."""

    zero_k_bias: Tensor

    def __init__(self, inputs: int, outputs: int, num_heads: int, causal: bool = False):
        super().__init__()
        inner = max(inputs, outputs)
        self.narrows, self.num_heads, self.outputs, self.causal = inputs > outputs, num_heads, outputs, causal
        self.qkv = nn.Linear(inputs, 3 * inner, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(inner)), nn.Parameter(torch.zeros(inner))
        self.register_buffer("zero_k_bias", torch.zeros(inner))
        self.proj = nn.Linear(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, self.zero_k_bias, self.v_bias])
        parts = linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        if not self.narrows:
            return self.proj(mixed.transpose(1, 2).flatten(2))
        averaged = mixed.mean(1)
        return self.proj(
            averaged if averaged.shape[-1] == self.outputs else adaptive_avg_pool1d(averaged, self.outputs)
        )


class AttentionProjection(nn.Module):
    """[B, N, inputs] → [B, N, outputs] by attention beside a matrix, then a gated feed-forward. causal: a position
    reads itself and those before it."""

    def __init__(self, inputs: int, outputs: int, num_heads: int, causal: bool = False):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(inputs), ResizingAttention(inputs, outputs, num_heads, causal)
        self.proj, self.norm3 = nn.Linear(inputs, outputs), nn.LayerNorm(inputs)
        self.norm2, self.mlp = nn.LayerNorm(outputs), GatedForward(outputs, 2 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(self.norm3(x)) + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))

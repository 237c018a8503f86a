"""A transformer over frames whose norms the time scales and shifts by one shared layer (adaLN-single of PixArt-α, arXiv
2310.00426), without a cross-attention; convolutions of three frames lead in and out.

Shapes: B batch, N frames, D width, C channels in, E channels out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention, silu

from unimodal.tokenizers.parts.trunks.flex import TimeEmbedding

NUM_WAVES, LONGEST = 512, 10_000.0


def make_sine_table(length: int, width: int) -> Tensor:
    """Sines in the even dimensions, cosines in the odd ones, float32 [1, length, D] (arXiv 1706.03762)."""
    waves = torch.exp(torch.arange(0, width, 2) * (-math.log(LONGEST) / width))
    angles = torch.arange(length)[:, None] * waves
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[None, :, :width]


class FrameProjection(nn.Module):
    """A convolution over three frames, scaled by 3^-½, and a linear layer: [B, N, C] → [B, N, E]."""

    def __init__(self, inner: int, outer: int, kernel: int = 3):
        super().__init__()
        self.ffn_1 = nn.Conv1d(inner, outer, kernel, padding=kernel // 2)
        self.ffn_2 = nn.Linear(outer, outer)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.ffn_1(x.transpose(1, 2)).transpose(1, 2)
        return self.ffn_2(mixed * self.ffn_1.kernel_size[0] ** -0.5)


class SingleBlock(nn.Module):
    """Attention and feed-forward; each is shifted, scaled and gated by the time's vectors plus a table of its own."""

    def __init__(self, width: int, num_heads: int, eps: float):
        super().__init__()
        self.num_heads, self.eps = num_heads, eps
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x: [B, N, D], time: [B, 6, D] → [B, N, D]."""
        parts = (self.scale_shift_table + time).chunk(6, dim=1)  # shift, scale, gate of both, [B, 1, D]
        q, k, v = (
            layer(self._norm(x, parts[0], parts[1])).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        x = x + parts[2] * self.to_out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        inner = nn.functional.gelu(self.up(self._norm(x, parts[3], parts[4])), approximate="tanh")
        return x + parts[5] * self.down(inner)

    def _norm(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return layer_norm(x, x.shape[-1:], eps=self.eps) * (1 + scale) + shift


class FrameTransformer(nn.Module):
    """Frames at a time of the flow → their velocity: [B, N, C], [B] → [B, N, E]."""

    positions: Tensor

    def __init__(
        self, inner: int, outer: int, width: int, num_layers: int, num_heads: int, max_frames: int, eps: float = 1e-6
    ):
        super().__init__()
        self.proj_in, self.proj_out = FrameProjection(inner, width), FrameProjection(width, outer)
        self.register_buffer("positions", make_sine_table(max_frames, width))
        self.time = TimeEmbedding(width, NUM_WAVES, LONGEST)
        self.time_to_parts = nn.Linear(width, 6 * width)
        self.blocks = nn.ModuleList([SingleBlock(width, num_heads, eps) for _ in range(num_layers)])
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """ValueError for more frames than there are positions."""
        if x.shape[1] > self.positions.shape[1]:
            raise ValueError(f"there are positions for {self.positions.shape[1]} frames; got {x.shape[1]}")
        embedded = self.time(time)
        parts = self.time_to_parts(silu(embedded)).unflatten(-1, (6, -1))
        x = self.proj_in(x) + self.positions[:, : x.shape[1]]
        for block in self.blocks:
            x = block(x, parts)
        shift, scale = (self.scale_shift_table + embedded[:, None]).chunk(2, dim=1)
        return self.proj_out(layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)

"""The vision transformer under timm's names of weights: DINOv2, SigLIP and EVA checkpoints of many systems have them.

Pre-norm blocks with one matrix for queries, keys and values, and a scale for each channel where there is one.

Shapes: B batch, N tokens, D width, H/W rows and columns of patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, scaled_dot_product_attention


class FusedAttention(nn.Module):
    """Multi-head attention over all N tokens."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two matrices with a GELU between."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x)))


class ChannelScale(nn.Module):
    """A learned factor for each channel (CaiT, arXiv 2103.17239)."""

    def __init__(self, width: int, initial: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class TimmBlock(nn.Module):
    """Attention and a feed-forward, each after a norm, scaled where `channel_scale` is given, residual."""

    def __init__(self, width: int, num_heads: int, inner: int, eps: float, channel_scale: float | None):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps), FusedAttention(width, num_heads)
        self.ls1 = nn.Identity() if channel_scale is None else ChannelScale(width, channel_scale)
        self.norm2, self.mlp = nn.LayerNorm(width, eps), FeedForward(width, inner)
        self.ls2 = nn.Identity() if channel_scale is None else ChannelScale(width, channel_scale)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchProjection(nn.Module):
    """Pictures [B, 3, H·p, W·p] → a vector for every patch [B, H·W, D]."""

    def __init__(self, width: int, patch: int):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TimmVit(nn.Module):
    """Blocks, the norm behind them, a class token and learned positions of a square grid, the class token's first.

    patch: None for a transformer that is given tokens and no pictures. channel_scale: where the blocks' factors begin;
    None for blocks without.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        num_heads: int,
        side: int,
        patch: int | None,
        inner: int | None = None,
        eps: float = 1e-6,
        channel_scale: float | None = 1e-5,
    ):
        super().__init__()
        self.side = side
        if patch is not None:
            self.patch_embed = PatchProjection(width, patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 1e-6)
        self.pos_embed = nn.Parameter(torch.randn(1, side * side + 1, width) * 0.02)
        hidden = 4 * width if inner is None else inner
        self.blocks = nn.ModuleList(TimmBlock(width, num_heads, hidden, eps, channel_scale) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps)

    def resample_positions(self, height: int, width: int) -> Tensor:
        """The positions of a grid of another size, the class token's first, [1, 1 + H·W, D]: bicubic with antialias."""
        if height == width == self.side:
            return self.pos_embed
        first, rest = self.pos_embed[:, :1], self.pos_embed[:, 1:].float()
        grid = rest.unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)
        grid = interpolate(grid, (height, width), mode="bicubic", antialias=True)
        return torch.cat([first, grid.flatten(2).transpose(1, 2).to(first.dtype)], dim=1)

    def place(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Tokens of a grid [B, H·W, D] → with a class token before them and positions added, [B, 1 + H·W, D]."""
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        return tokens + self.resample_positions(height, width)

    def run_blocks(self, x: Tensor) -> Tensor:
        """[B, N, D] → [B, N, D], normed."""
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

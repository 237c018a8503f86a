"""Small blocks that tokenizers share: residual convolutions and pre-norm transformer blocks.

Shapes: B batch, N tokens, D width, C channels, H/W height and width.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn


class TransformerSize(BaseModel):
    """Width, layers and heads of a transformer."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    width: int = Field(ge=1)
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1)


class TransformerBlock(nn.Module):
    """Pre-norm attention and GELU feed-forward, full attention over N (ViT, arXiv 2010.11929)."""

    def __init__(self, width: int, num_heads: int, expansion: int = 4):
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)
        for layer in (self.out, self.down):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, N, D] → [B, N, D]."""
        batch, num, width = x.shape
        qkv = self.qkv(self.norm_attention(x)).reshape(batch, num, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, N, D/heads]
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, num, width))
        return x + self.down(nn.functional.gelu(self.up(self.norm_mlp(x))))


class ResidualConv(nn.Module):
    """Two 3×3 convolutions with group norm and SiLU, residual (the block of VQGAN, arXiv 2012.09841)."""

    def __init__(self, channels: int, groups: int = 8):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, C, H, W] → the same shape."""
        y = self.conv1(nn.functional.silu(self.norm1(x)))
        return x + self.conv2(nn.functional.silu(self.norm2(y)))


def make_tanh_pair(inputs: int, inner: int, outputs: int) -> nn.Sequential:
    """Two matrices with a tanh between: the way to a code's few dimensions and back in SEED, Moto and TokenFlow."""
    return nn.Sequential(nn.Linear(inputs, inner), nn.Tanh(), nn.Linear(inner, outputs))

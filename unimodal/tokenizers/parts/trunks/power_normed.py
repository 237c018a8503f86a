"""A transformer without norms on its path: the layers' weights are normed instead, queries and keys are normed, and
each branch has a learned scale (the "power normalized" form of stable-audio-tools' blocks, as UniAudio 2 uses it).

Shapes: B batch, N tokens, D width, d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.parametrizations import weight_norm


class PartialRotary(nn.Module):
    """Rotary positions on the first dimensions of a head, half of it but at least 32: dimension i turns with i + half
    of these (arXiv 2104.09864)."""

    inv_freq: Tensor

    def __init__(self, head_width: int):
        super().__init__()
        self.turned = max(head_width // 2, 32)
        if self.turned > head_width:
            raise ValueError(f"rotary positions turn 32 dimensions at least; got heads of {head_width}")
        frequencies = 10_000 ** (-torch.arange(0, self.turned, 2).float() / self.turned)
        self.register_buffer("inv_freq", frequencies)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, heads, N, d] → the same, turned by its position."""
        angles = torch.arange(x.shape[-2], device=x.device).float()[:, None] * self.inv_freq.float()
        cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()
        part, rest = x[..., : self.turned].float(), x[..., self.turned :]
        first, second = part.chunk(2, -1)
        turned = part * cos + torch.cat([-second, first], -1) * sin
        return torch.cat([turned.type_as(x), rest], -1)


class PowerNormedBlock(nn.Module):
    """Attention and a feed-forward gated by a sigmoid, both through weight-normed layers."""

    def __init__(self, width: int, head_width: int, expansion: int):
        super().__init__()
        self.head_width = head_width
        self.to_qkv = weight_norm(nn.Linear(width, 3 * width, bias=False))
        self.to_out = weight_norm(nn.Linear(width, width, bias=False))
        self.q_norm, self.k_norm = nn.LayerNorm(head_width), nn.LayerNorm(head_width)
        self.up = weight_norm(nn.Linear(width, 2 * expansion * width))
        self.down = weight_norm(nn.Linear(expansion * width, width))
        self.attention_scale = nn.Parameter(torch.full((width,), 1e-2))
        self.mlp_scale = nn.Parameter(torch.full((width,), 1e-2))
        self.rope = PartialRotary(head_width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, N, D] → [B, N, D]."""
        q, k, v = (
            part.unflatten(-1, (-1, self.head_width)).transpose(1, 2) for part in self.to_qkv(x).chunk(3, dim=-1)
        )
        mixed = scaled_dot_product_attention(self.rope(self.q_norm(q)), self.rope(self.k_norm(k)), v)
        x = x + self.attention_scale * self.to_out(mixed.transpose(1, 2).flatten(2))
        inner, gate = self.up(x).chunk(2, dim=-1)
        return x + self.mlp_scale * self.down(inner * gate.sigmoid())

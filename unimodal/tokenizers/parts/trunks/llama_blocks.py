"""A language model's blocks over queries and a map (LLaMA, arXiv 2302.13971), and convolutions that halve or double the
map between them (DC-AE, arXiv 2410.10733).

Shapes: B batch, N tokens (queries first), h/w rows and columns of the map, D width, d width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, scaled_dot_product_attention, silu

EPS = 1e-6
THETA = 10_000.0


@dataclass(frozen=True)
class HalfRotation:
    """Cosines and sines [N, 1, d] by which queries and keys are turned."""

    cos: Tensor
    sin: Tensor

    def turn(self, x: Tensor) -> Tensor:
        """x: [B, N, heads, d]. The second half of a head is the partner of the first, though neighbours have one
        frequency: so do the authors of Instella-T2I."""
        first, second = x.chunk(2, dim=-1)
        return x * self.cos + torch.cat([-second, first], -1) * self.sin


def make_rotation(
    num_queries: int, grid: tuple[int, int], span: float | None, axes: Sequence[int], device: torch.device
) -> HalfRotation:
    """Positions of queries (first axis) and of a map (second and third), an axis having so many of the d dimensions.

    span: how many places the map's positions are spread over, whatever its size; None counts them.
    """
    rows, columns = (
        torch.arange(size, device=device, dtype=torch.float32)
        * (1.0 if span is None else (span - 1) / max(size - 1, 1))
        for size in grid
    )
    ids = torch.zeros(num_queries + grid[0] * grid[1], 3, device=device)
    ids[:num_queries, 0] = torch.arange(num_queries, device=device, dtype=torch.float32)
    ids[num_queries:, 1], ids[num_queries:, 2] = rows.repeat_interleave(grid[1]), columns.repeat(grid[0])
    angles = []
    for axis, size in enumerate(axes):
        frequencies = THETA ** (-torch.arange(0, size, 2, dtype=torch.float64, device=device) / size)
        angles.append((ids[:, axis, None].double() * frequencies).repeat_interleave(2, dim=1))
    angle = torch.cat(angles, 1)[:, None]
    return HalfRotation(angle.cos().float(), angle.sin().float())


class RotatedAttention(nn.Module):
    """Every token reads every other; queries and keys are normed and turned by their positions."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(width // num_heads, EPS), nn.RMSNorm(width // num_heads, EPS)

    def forward(self, x: Tensor, rotation: HalfRotation) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.num_heads, -1)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotation.turn(self.norm_q(q)), rotation.turn(self.norm_k(k))
        mixed = scaled_dot_product_attention(*(each.transpose(1, 2) for each in (q, k, v)))
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class GatedLayer(nn.Module):
    """silu(A x) · (B x), then back, with an inner width of 4 D."""

    def __init__(self, width: int):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, 4 * width, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaBlock(nn.Module):
    """Attention and a gated layer, each after a norm, residual: [B, N, D] → [B, N, D]."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(width, EPS), nn.RMSNorm(width, EPS)
        self.attn, self.mlp = RotatedAttention(width, num_heads), GatedLayer(width)

    def forward(self, x: Tensor, rotation: HalfRotation) -> Tensor:
        x = x + self.attn(self.input_layernorm(x), rotation)
        return x + self.mlp(self.post_attention_layernorm(x))


class HalvingLayer(nn.Module):
    """A strided convolution beside the mean of each 2×2: maps [B, D, h, w] → [B, D, h/2, w/2]."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + pixel_unshuffle(x, 2).unflatten(1, (-1, 4)).mean(2)


class DoublingLayer(nn.Module):
    """A convolution to the four places of each cell beside its copies: maps [B, D, h, w] → [B, D, 2h, 2w]."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, 4 * width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return pixel_shuffle(self.conv(x), 2) + pixel_shuffle(x.repeat_interleave(4, dim=1), 2)

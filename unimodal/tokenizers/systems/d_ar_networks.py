"""The networks of D-AR: gated blocks for queries and conditions, and a flow whose blocks read one window of conditions
(SiT, arXiv 2401.08740), as showlab/D-AR @3fb0f2d has them.

Shapes: B batch, N tokens, M conditions, D width, C channels, h and w rows and columns of patches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import (
    avg_pool2d,
    layer_norm,
    pixel_shuffle,
    pixel_unshuffle,
    scaled_dot_product_attention,
    silu,
)

from unimodal.tokenizers.parts.trunks.vit import GridSize, Rotation, rotate_grid

EPS = 1e-6


def norm_freely(x: Tensor) -> Tensor:
    """Layer norm without weights."""
    return layer_norm(x, x.shape[-1:], eps=EPS)


def rotate_map(grid: GridSize, head_width: int, num_behind: int, device: torch.device) -> Rotation:
    """The rotation of a map's places, and none of the tokens behind it."""
    turned = rotate_grid(grid, head_width, base=10_000.0)
    still = torch.zeros(num_behind, head_width // 2)
    return Rotation(torch.cat([turned.cos, still + 1]).to(device), torch.cat([turned.sin, still]).to(device))


class NormedAttention(nn.Module):
    """Attention with normed queries and keys, among tokens themselves or over a context."""

    def __init__(self, width: int, head_width: int):
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))
        self.q_norm, self.k_norm = nn.LayerNorm(head_width, EPS), nn.LayerNorm(head_width, EPS)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """x: [B, N, D], context: [B, M, D] or None for x → [B, N, D]. rotation: of the queries, and of keys that are
        x's own. mask: bool [N, M], True where a token attends."""
        head = self.q_norm.normalized_shape[0]
        source = x if context is None else context
        q, k, v = (
            layer(tokens).unflatten(-1, (-1, head)).transpose(1, 2)
            for layer, tokens in ((self.q, x), (self.k, source), (self.v, source))
        )
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q = rotation.turn(q)
            k = rotation.turn(k) if context is None else k
        return self.proj(scaled_dot_product_attention(q, k, v, mask, is_causal=causal).transpose(1, 2).flatten(2))


class SiluForward(nn.Module):
    """Two layers with a SiLU between, four times as wide inside."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(silu(self.fc1(x)))


class ScaledBlock(nn.Module):
    """Attention and feed-forward after norms, each times a learned vector that begins at 0."""

    def __init__(self, width: int, head_width: int):
        super().__init__()
        self.attention, self.mlp = NormedAttention(width, head_width), SiluForward(width)
        self.norm1, self.norm2 = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.gate1, self.gate2 = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.apply(init_narrowly)

    def forward(
        self, x: Tensor, rotation: Rotation | None = None, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        x = x + self.attention(self.norm1(x), rotation=rotation, mask=mask, causal=causal) * self.gate1
        return x + self.mlp(self.norm2(x)) * self.gate2


class FlowTime(nn.Module):
    """Times in [0, 1], float [B] → [B, D]: waves of up to 10,000 steps of a thousandth, and two layers."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Tensor) -> Tensor:
        half = self.mlp[0].in_features // 2
        frequencies = torch.exp(-math.log(10_000) / half * torch.arange(half, device=time.device))
        waves = time[:, None].float() * 1000 * frequencies
        return self.mlp(torch.cat([waves.cos(), waves.sin()], -1))


class FlowBlock(nn.Module):
    """A block of the flow: what a patch reads of the conditions is added to the time, and the sum shifts, scales and
    gates attention and feed-forward; it begins closed."""

    def __init__(self, width: int, head_width: int):
        super().__init__()
        self.attention, self.cross_attn = NormedAttention(width, head_width), NormedAttention(width, head_width)
        self.mlp, self.time_embed = SiluForward(width), FlowTime(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.cond_embed = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.apply(init_narrowly)
        nn.init.zeros_(self.adaLN_modulation[1].weight)

    def forward(self, x: Tensor, condition: Tensor, time: Tensor, rotation: Rotation) -> Tensor:
        told = self.cross_attn(norm_freely(x), norm_freely(self.cond_embed(condition)), rotation)
        parts = self.adaLN_modulation(self.time_embed(time)[:, None] + told).chunk(6, dim=-1)
        x = x + parts[2] * self.attention(norm_freely(x) * (1 + parts[1]) + parts[0], rotation=rotation)
        return x + parts[5] * self.mlp(norm_freely(x) * (1 + parts[4]) + parts[3])


class WindowFlow(nn.Module):
    """The velocity data − noise of a picture, of one window of conditions; it begins at 0.

    align_layer: before that layer the patches, averaged to the grid of `align_side`, are read for an alignment.
    """

    def __init__(
        self,
        width: int,
        head_width: int,
        num_layers: int,
        patch_size: int,
        align_layer: int,
        align_widths: tuple[int, int],
        align_side: int,
    ):
        super().__init__()
        self.patch_size, self.align_layer, self.align_side, self.head_width = (
            patch_size, align_layer, align_side, head_width,
        )  # fmt: skip
        inner, outer = align_widths
        self.cond_mlp = nn.Linear(width, width)
        self.conv_in = nn.Conv2d(3 * patch_size**2, width, 1)
        self.conv_out = nn.Conv2d(width, 3 * patch_size**2, 1)
        self.blocks = nn.ModuleList(FlowBlock(width, head_width) for _ in range(num_layers))
        self.repa_out = nn.Sequential(
            nn.Linear(width, inner), nn.SiLU(), nn.Linear(inner, inner), nn.SiLU(), nn.Linear(inner, outer)
        )
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x: Tensor, time: Tensor, conditions: Tensor) -> tuple[Tensor, Tensor | None]:
        """x: noisy float [B, 3, H, W], time: [B] from 0, noise, to 1; conditions: [B, M, D] → (velocity [B, 3, H, W],
        features to align [B, side², K], or None of a flow with fewer layers)."""
        conditions = norm_freely(self.cond_mlp(conditions))
        maps = self.conv_in(pixel_unshuffle(x, self.patch_size))
        grid = (maps.shape[2], maps.shape[3])
        rotation, tokens, features = (
            rotate_map(grid, self.head_width, 0, x.device),
            maps.flatten(2).transpose(1, 2),
            None,
        )
        for index, block in enumerate(self.blocks):
            if index == self.align_layer:
                pooled = avg_pool2d(tokens.transpose(1, 2).unflatten(2, grid), max(1, grid[0] // self.align_side))
                features = self.repa_out(pooled.flatten(2).transpose(1, 2))
            tokens = block(tokens, conditions, time, rotation)
        made = self.conv_out(norm_freely(tokens).transpose(1, 2).unflatten(2, grid))
        return pixel_shuffle(made, self.patch_size), features


def init_narrowly(module: nn.Module) -> None:
    """Linear layers begin with a deviation of 0.02 and no bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)

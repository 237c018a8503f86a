"""The transformer of BEATs (arXiv 2212.09058) over patches of a filter bank: positions by a convolution and by a gated
table of distances (WavLM, arXiv 2110.13900), DeepNorm (arXiv 2203.00555).

Shapes: B batch, N patches, D width, H heads, K width of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention


@dataclass(frozen=True)
class BeatsSizes:
    """conv_positions, conv_groups: kernel and groups of the convolution of positions. num_buckets, max_distance: of the
    table of distances; no buckets, no table. gated: each query scales what it takes of that table. norm_first: norms
    before attention and feed-forward; behind them otherwise, there with deep: DeepNorm's larger residual."""

    width: int
    num_layers: int
    num_heads: int
    inner: int
    conv_positions: int = 128
    conv_groups: int = 16
    num_buckets: int = 320
    max_distance: int = 1280
    gated: bool = True
    norm_first: bool = False
    deep: bool = True


class WeightNormConv(nn.Module):
    """A convolution whose weight is a direction and a length for each place of the kernel, under the names that torch's
    older weight norm gave them."""

    def __init__(self, width: int, kernel: int, groups: int):
        super().__init__()
        self.groups = groups
        weight = torch.randn(width, width // groups, kernel) * math.sqrt(4 / (kernel * width))
        self.weight_v = nn.Parameter(weight)
        self.weight_g = nn.Parameter(weight.detach().norm(dim=(0, 1), keepdim=True))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, N] → [B, D, N]: of an even kernel the last place is left out."""
        weight = torch._weight_norm(self.weight_v, self.weight_g, 2)
        kernel = weight.shape[-1]
        made = nn.functional.conv1d(x, weight, self.bias, padding=kernel // 2, groups=self.groups)
        return made[..., : x.shape[-1]]


class BeatsAttention(nn.Module):
    """Attention with a bias by distance, which is gated by the query."""

    def __init__(self, sizes: BeatsSizes, has_table: bool):
        super().__init__()
        self.sizes = sizes
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(sizes.width, sizes.width) for _ in range(4))
        self.relative_attention_bias = nn.Embedding(sizes.num_buckets, sizes.num_heads) if has_table else None
        self.gated = sizes.gated and sizes.num_buckets > 0
        if self.gated:
            self.grep_linear = nn.Linear(sizes.width // sizes.num_heads, 8)
            self.grep_a = nn.Parameter(torch.ones(1, sizes.num_heads, 1, 1))

    def make_bias(self, count: int) -> Tensor | None:
        """The table of distances as [H, N, N]; None where there is none."""
        if self.relative_attention_bias is None:
            return None
        places = torch.arange(count, device=self.relative_attention_bias.weight.device)
        buckets = find_buckets(places - places.unsqueeze(1), self.sizes.num_buckets, self.sizes.max_distance)
        return self.relative_attention_bias(buckets).permute(2, 0, 1)

    def forward(self, x: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
        """x: [B, N, D]; bias: [H, N, N]; mask: bool [B, N], True where a patch is real → [B, N, D]."""
        heads = self.sizes.num_heads
        q, k, v = (
            part(x).unflatten(-1, (heads, -1)).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        added = bias
        if bias is not None and self.gated:
            first, second = self.grep_linear(q).unflatten(-1, (2, 4)).sum(-1).sigmoid().chunk(2, dim=-1)  # [B, H, N, 1]
            added = (first * (second * self.grep_a - 1.0) + 2.0) * bias
        if mask is not None:
            hidden = torch.zeros(mask.shape, device=x.device, dtype=x.dtype).masked_fill(~mask, float("-inf"))
            added = hidden[:, None, None] if added is None else added + hidden[:, None, None]
        attended = scaled_dot_product_attention(q, k, v, attn_mask=added)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


def find_buckets(distances: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """T5's buckets (arXiv 1910.10683) of int64 distances, a half for each sign: exact when near, else by logarithm."""
    half = num_buckets // 2
    exact = half // 2
    sizes = distances.abs()
    far = exact + ((sizes.float() / exact).log() / math.log(max_distance / exact) * (half - exact)).long().clamp(
        max=half - 1 - exact
    )
    return (distances > 0).long() * half + torch.where(sizes < exact, sizes, far)


class BeatsLayer(nn.Module):
    """Attention and a GELU feed-forward, residual, with a norm each."""

    def __init__(self, sizes: BeatsSizes, has_table: bool):
        super().__init__()
        self.norm_first = sizes.norm_first
        self.alpha = (2 * sizes.num_layers) ** 0.25 if sizes.deep else 1.0
        self.self_attn = BeatsAttention(sizes, has_table)
        self.self_attn_layer_norm = nn.LayerNorm(sizes.width)
        self.fc1, self.fc2 = nn.Linear(sizes.width, sizes.inner), nn.Linear(sizes.inner, sizes.width)
        self.final_layer_norm = nn.LayerNorm(sizes.width)
        if sizes.deep:
            self._start_deep(sizes.num_layers)

    def _start_deep(self, num_layers: int) -> None:
        """DeepNorm's smaller weights of what is added to the residual."""
        gain = (8 * num_layers) ** -0.25
        for part in (self.self_attn.q_proj, self.self_attn.k_proj):
            nn.init.xavier_normal_(part.weight)
        for part in (self.self_attn.v_proj, self.self_attn.out_proj, self.fc1, self.fc2):
            nn.init.xavier_normal_(part.weight, gain=gain)

    def forward(self, x: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
        if self.norm_first:
            x = x + self.self_attn(self.self_attn_layer_norm(x), bias, mask)
            return x + self.fc2(gelu(self.fc1(self.final_layer_norm(x))))
        x = self.self_attn_layer_norm(self.alpha * x + self.self_attn(x, bias, mask))
        return self.final_layer_norm(self.alpha * x + self.fc2(gelu(self.fc1(x))))


class BeatsEncoder(nn.Module):
    """Positions by a convolution, then layers that share the first one's table of distances."""

    def __init__(self, sizes: BeatsSizes):
        super().__init__()
        self.norm_first = sizes.norm_first
        self.pos_conv = nn.Sequential(
            WeightNormConv(sizes.width, sizes.conv_positions, sizes.conv_groups), nn.Identity(), nn.GELU()
        )
        self.layers = nn.ModuleList(
            BeatsLayer(sizes, number == 0 and sizes.num_buckets > 0) for number in range(sizes.num_layers)
        )
        self.layer_norm = nn.LayerNorm(sizes.width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: [B, N, D]; mask: bool [B, N], True where a patch is real → [B, N, D]."""
        if mask is not None:
            x = x * mask.unsqueeze(-1)
        x = x + self.pos_conv(x.transpose(1, 2)).transpose(1, 2)
        if not self.norm_first:
            x = self.layer_norm(x)
        first = self.layers[0]
        assert isinstance(first, BeatsLayer)
        bias = first.self_attn.make_bias(x.shape[1])
        for layer in self.layers:
            x = layer(x, bias, mask)
        return self.layer_norm(x) if self.norm_first else x

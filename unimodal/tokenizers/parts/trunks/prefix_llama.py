"""A transformer of Llama's layers (arXiv 2302.13971) that looks both ways over frames, behind a prefix of text; its
norms are scaled by a time (TaDiCodec, arXiv 2508.16790).

Shapes: B batch, N frames, P prefix, C channels in, E channels out, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

EPSILON, BASE = 1e-6, 10_000.0


class ScaledNorm(nn.Module):
    """Root mean square norm; its weights are read from the embedded time, or there are none."""

    def __init__(self, width: int, timed: bool):
        super().__init__()
        self.to_weight = nn.Linear(width, width) if timed else None
        if self.to_weight is not None:
            nn.init.zeros_(self.to_weight.weight)
            nn.init.ones_(self.to_weight.bias)

    def forward(self, x: Tensor, time: Tensor | None) -> Tensor:
        """x: [B, N, D], time: [B, D] or None → [B, N, D]."""
        scaled = x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + EPSILON).type_as(x)
        return scaled if self.to_weight is None else self.to_weight(time)[:, None] * scaled


class RotaryAttention(nn.Module):
    """Attention both ways; dimension i of a head turns with i + half of it."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x: [B, N, D]; mask: bool [B, N], False where nobody looks."""
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        width = q.shape[-1]
        waves = BASE ** (-torch.arange(0, width, 2, device=x.device).float() / width)
        angles = (torch.arange(x.shape[1], device=x.device).float()[:, None] * waves).repeat(1, 2)
        cos, sin = angles.cos(), angles.sin()
        q, k = ((part.float() * cos + _turn_quarter(part.float()) * sin).type_as(v) for part in (q, k))
        seen = None if mask is None else mask[:, None, None]
        return self.o_proj(scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(2))


def _turn_quarter(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


class GatedUnit(nn.Module):
    """Feed-forward with SwiGLU (arXiv 2002.05202)."""

    def __init__(self, width: int):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, 4 * width, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class PrefixLayer(nn.Module):
    """Attention and feed-forward, each behind a norm and beside a skip."""

    def __init__(self, width: int, num_heads: int, timed: bool):
        super().__init__()
        self.self_attn, self.mlp = RotaryAttention(width, num_heads), GatedUnit(width)
        self.input_layernorm, self.post_attention_layernorm = ScaledNorm(width, timed), ScaledNorm(width, timed)

    def forward(self, x: Tensor, mask: Tensor | None, time: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x, time), mask)
        return x + self.mlp(self.post_attention_layernorm(x, time))


def make_silu_pair(width: int) -> nn.Sequential:
    """Two layers with a SiLU between them, four times as wide inside."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))


class PrefixLlama(nn.Module):
    """Frames → features, [B, N, C] → [B, N, D]; or, where `channels_out` is given, frames at a time, with a condition
    for each and a text before all → [B, N, E]."""

    def __init__(
        self,
        channels: int,
        width: int,
        num_layers: int,
        num_heads: int,
        channels_out: int | None = None,
        reads_text: bool = False,
    ):
        super().__init__()
        if width % num_heads or width // num_heads % 2:
            raise ValueError(f"a width of {width} is not {num_heads} heads of an even width")
        timed = channels_out is not None
        self.in_linear = nn.Linear(channels, width)
        self.layers = nn.ModuleList([PrefixLayer(width, num_heads, timed) for _ in range(num_layers)])
        self.norm = ScaledNorm(width, timed)
        self.text_mlp = make_silu_pair(width) if reads_text else None
        self.diff_step_mlp = make_silu_pair(width) if timed else None
        self.cond_mlp = make_silu_pair(width) if timed else None
        self.out_linear = None if channels_out is None else nn.Linear(width, channels_out)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        time: Tensor | None = None,
        condition: Tensor | None = None,
        prefix: Tensor | None = None,
        prefix_mask: Tensor | None = None,
    ) -> Tensor:
        """mask: bool [B, N], False where a frame is padding. time: [B] in [0, 1]. condition: [B, N, D]. prefix: [B, P,
        D], which takes the first positions; prefix_mask: bool [B, P]."""
        x = self.in_linear(x)
        if self.cond_mlp is not None and condition is not None:
            x = x + self.cond_mlp(condition)
        told = None
        if self.diff_step_mlp is not None and time is not None:
            told = self.diff_step_mlp(embed_time(time, x.shape[-1]))
        count = 0
        if self.text_mlp is not None and prefix is not None:
            count = prefix.shape[1]
            if mask is not None or prefix_mask is not None:
                parts = ((prefix_mask, prefix), (mask, x))
                masks = [part.new_ones(part.shape[:2], dtype=torch.bool) if own is None else own for own, part in parts]
                mask = torch.cat(masks, 1)
            x = torch.cat([self.text_mlp(prefix), x], 1)
        for layer in self.layers:
            x = layer(x, mask, told)
        x = self.norm(x, told)[:, count:]
        return x if self.out_linear is None else self.out_linear(x)


def embed_time(time: Tensor, width: int) -> Tensor:
    """Sines, then cosines of a time [B] → [B, D]; the time is taken as it is, from 0 to 1."""
    half = width // 2
    waves = torch.exp(torch.arange(half, device=time.device) * -(math.log(BASE) / (half - 1)))
    angles = time[:, None] * waves
    return torch.cat([angles.sin(), angles.cos()], -1)

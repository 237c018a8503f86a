"""Causal transformers over time whose steps look back a fixed number of steps, whole or piece by piece (Moshi, arXiv
2410.00037; MOSS-Audio-Tokenizer), and the patches between them.

Shapes: B batch, C channels, T steps, D width, H heads, d width of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from unimodal.tokenizers.parts.streaming import KeyWindow, PointwiseStage, Stage
from unimodal.tokenizers.parts.trunks.vit import Rotation

#: queries that attend together: the memory of attention grows with the context and not with the square of the length
QUERIES_AT_ONCE = 512


class LayerScale(nn.Module):
    """A factor for each dimension of what a layer adds (arXiv 2103.17239)."""

    def __init__(self, width: int, start: float):
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class StreamedAttention(nn.Module):
    """Each step looks at itself and the `context` - 1 steps before, with rotary positions (arXiv 2104.09864) of pairs
    (2i, 2i + 1). The rows of in_proj are queries, keys and values."""

    def __init__(self, width: int, num_heads: int, context: int, max_period: float):
        super().__init__()
        self.num_heads, self.context, self.max_period = num_heads, context, max_period
        self.in_proj = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, window: KeyWindow) -> Tensor:
        """x: [B, T, D], the steps behind those in the window."""
        heads = self.in_proj(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = heads  # [B, H, T, d]
        rotation = self._rotate(window.position, x.shape[1], queries)
        keys, values, mask = window.extend(rotation.turn(keys), values)
        mixed = scaled_dot_product_attention(rotation.turn(queries), keys, values, mask)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out

    def _rotate(self, position: int, count: int, like: Tensor) -> Rotation:
        half = like.shape[-1] // 2
        frequencies = torch.exp(torch.arange(half, device=like.device) * (-math.log(self.max_period) / half))
        angles = torch.outer(torch.arange(position, position + count, device=like.device).float(), frequencies)
        return Rotation(angles.cos().to(like.dtype), angles.sin().to(like.dtype))


class CausalLayer(nn.Module):
    """Attention and two linear maps, each behind a norm, scaled and added."""

    def __init__(self, width: int, num_heads: int, inner: int, context: int, max_period: float, layer_scale: float):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn = StreamedAttention(width, num_heads, context, max_period)
        self.linear1, self.linear2 = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)
        self.layer_scale_1, self.layer_scale_2 = LayerScale(width, layer_scale), LayerScale(width, layer_scale)

    def forward(self, x: Tensor, window: KeyWindow) -> Tensor:
        x = x + self.layer_scale_1(self.self_attn(self.norm1(x), window))
        added: Tensor = x + self.layer_scale_2(self.linear2(gelu(self.linear1(self.norm2(x)))))
        return added


class CausalTransformer(nn.Module):
    """[B, input_width, T] → [B, output_width, T]. context: steps that each step looks at, itself included."""

    def __init__(
        self,
        input_width: int,
        output_width: int,
        width: int,
        num_heads: int,
        num_layers: int,
        inner: int,
        context: int,
        max_period: float = 10000.0,
        layer_scale: float = 0.01,
    ):
        super().__init__()
        if width % (2 * num_heads):
            raise ValueError(f"{num_heads} heads of an even width do not divide a width of {width}")
        if context < 1:
            raise ValueError(f"a step looks at itself at least; the context is {context} steps")
        self.context, self.output_width = context, output_width
        self.input_proj = nn.Linear(input_width, width, bias=False) if input_width != width else nn.Identity()
        self.layers = nn.ModuleList(
            CausalLayer(width, num_heads, inner, context, max_period, layer_scale) for _ in range(num_layers)
        )
        self.output_proj = nn.Linear(width, output_width, bias=False) if output_width != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.open_stage(ring=False).push(x, last=True)

    def open_stage(self, ring: bool) -> CausalTransformerStage:
        """A stream of this transformer; ring: see `KeyWindow`."""
        return CausalTransformerStage(self, ring)

    def run(self, x: Tensor, windows: list[KeyWindow]) -> Tensor:
        """x: [B, C, n], the steps behind those in the windows, one for each layer."""
        steps = self.input_proj(x.transpose(1, 2))
        for layer, window in zip(self.layers, windows, strict=True):
            steps = layer(steps, window)
        return self.output_proj(steps).transpose(1, 2)


class CausalTransformerStage(Stage):
    """`CausalTransformer` over pieces."""

    def __init__(self, network: CausalTransformer, ring: bool):
        self.network, self.ring = network, ring
        self.windows = [KeyWindow(network.context, ring) for _ in network.layers]

    def push(self, x: Tensor, last: bool = False) -> Tensor:
        if not x.shape[-1]:
            return x.new_zeros(len(x), self.network.output_width, 0)
        if self.ring:  # it holds what one call writes: how the steps are cut matters
            return self.network.run(x, self.windows)
        return torch.cat([self.network.run(part, self.windows) for part in x.split(QUERIES_AT_ONCE, -1)], -1)


class PatchFold(nn.Module):
    """[B, C, T · size] → [B, C · size, T]: the steps of a patch become channels, the step fastest."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.size)).transpose(2, 3).flatten(1, 2)

    def open_stage(self, ring: bool) -> Stage:
        """A stream of this layer, whose pieces are whole patches."""
        return PointwiseStage(self)


class PatchUnfold(nn.Module):
    """The inverse of `PatchFold`."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, self.size)).transpose(2, 3).flatten(2)

    def open_stage(self, ring: bool) -> Stage:
        """A stream of this layer."""
        return PointwiseStage(self)

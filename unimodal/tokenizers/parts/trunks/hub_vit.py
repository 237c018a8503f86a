"""The vision transformer under the weight names of transformers' first ViT classes, which many released models keep.

Pre-norm layers with separate projections of queries, keys and values (Dosovitskiy et al., arXiv 2010.11929).

Shapes: B batch, N tokens, P patches, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention


@dataclass(frozen=True)
class HubVitSizes:
    """inner: width of the hidden units between two layers of a feed-forward."""

    width: int
    num_layers: int
    num_heads: int
    inner: int
    eps: float = 1e-12


class SelfAttention(nn.Module):
    """Queries, keys and values, each a matrix of its own."""

    def __init__(self, sizes: HubVitSizes):
        super().__init__()
        self.num_heads = sizes.num_heads
        self.query, self.key, self.value = (nn.Linear(sizes.width, sizes.width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        return scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Dense(nn.Module):
    """One matrix, under the name that transformers gives it."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)


class HubVitLayer(nn.Module):
    """Attention and a GELU feed-forward, each after a norm, residual."""

    def __init__(self, sizes: HubVitSizes):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(sizes.width, sizes.eps)
        self.attention = nn.ModuleDict({"attention": SelfAttention(sizes), "output": Dense(sizes.width, sizes.width)})
        self.layernorm_after = nn.LayerNorm(sizes.width, sizes.eps)
        self.intermediate = Dense(sizes.width, sizes.inner)
        self.output = Dense(sizes.inner, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention["output"](self.attention["attention"](self.layernorm_before(x)))
        return x + self.output(gelu(self.intermediate(self.layernorm_after(x))))


class HubPatchEmbedding(nn.Module):
    """A vector for every patch."""

    def __init__(self, width: int, patch: int):
        super().__init__()
        self.projection = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, 3, H, W] → [B, P, width]."""
        return self.projection(x).flatten(2).transpose(1, 2)


class HubVit(nn.Module):
    """Layers and the norm behind them; what goes in is the business of the class that extends it."""

    def __init__(self, sizes: HubVitSizes):
        super().__init__()
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(HubVitLayer(sizes) for _ in range(sizes.num_layers))})
        self.layernorm = nn.LayerNorm(sizes.width, sizes.eps)

    def run_layers(self, x: Tensor) -> Tensor:
        """[B, N, D] → [B, N, D]."""
        for layer in self.encoder["layer"]:
            x = layer(x)
        return self.layernorm(x)

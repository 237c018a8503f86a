"""The Q-Former: learned queries that read the features of a picture (BLIP-2, arXiv 2301.12597), here causal as in SEED.

Post-norm layers under BERT's names of weights. A query attends to the queries before it and to itself, and in every
second layer to all features.

Shapes: B batch, Q queries, M features, D width, K width of the features.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

EPS = 1e-12


@dataclass(frozen=True)
class QueryFormerSizes:
    """cross_every: a layer reads the features where its number is a multiple of this. causal: a query attends to those
    before it and itself, else to all."""

    width: int
    num_layers: int
    num_heads: int
    inner: int
    cross_every: int = 2
    causal: bool = True


class Projections(nn.Module):
    """Queries, keys and values, each a matrix of its own; keys and values may be of other vectors."""

    def __init__(self, sizes: QueryFormerSizes, context_width: int):
        super().__init__()
        self.num_heads = sizes.num_heads
        self.query = nn.Linear(sizes.width, sizes.width)
        self.key, self.value = nn.Linear(context_width, sizes.width), nn.Linear(context_width, sizes.width)

    def forward(self, x: Tensor, context: Tensor, causal: bool) -> Tensor:
        q, k, v = (
            layer(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, tokens in ((self.query, x), (self.key, context), (self.value, context))
        )
        return scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)


class NormedSum(nn.Module):
    """A matrix, the sum with what was before it, and a norm."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(inputs, outputs), nn.LayerNorm(outputs, EPS)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(h) + x)


class Hidden(nn.Module):
    """The first matrix of a feed-forward, with a GELU."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return gelu(self.dense(x))


def make_attention(sizes: QueryFormerSizes, context_width: int) -> nn.ModuleDict:
    return nn.ModuleDict({"self": Projections(sizes, context_width), "output": NormedSum(sizes.width, sizes.width)})


class QueryFormerLayer(nn.Module):
    """Attention among queries, over the features where this layer reads them, and a feed-forward."""

    def __init__(self, sizes: QueryFormerSizes, context_width: int, reads: bool):
        super().__init__()
        self.reads, self.causal = reads, sizes.causal
        self.attention = make_attention(sizes, sizes.width)
        if reads:
            self.crossattention = make_attention(sizes, context_width)
        self.intermediate_query = Hidden(sizes.width, sizes.inner)
        self.output_query = NormedSum(sizes.inner, sizes.width)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, x, causal=self.causal), x)
        if self.reads:
            x = self.crossattention["output"](self.crossattention["self"](x, features, causal=False), x)
        return self.output_query(self.intermediate_query(x), x)


class QueryFormer(nn.Module):
    """Queries [B, Q, D] and features [B, M, K] → what the queries read [B, Q, D]."""

    def __init__(self, sizes: QueryFormerSizes, context_width: int):
        super().__init__()
        layers = (
            QueryFormerLayer(sizes, context_width, number % sizes.cross_every == 0)
            for number in range(sizes.num_layers)
        )
        self.embeddings = nn.ModuleDict({"LayerNorm": nn.LayerNorm(sizes.width, EPS)})
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})

    def forward(self, queries: Tensor, features: Tensor) -> Tensor:
        x = self.embeddings["LayerNorm"](queries)
        for layer in self.encoder["layer"]:
            x = layer(x, features)
        return x

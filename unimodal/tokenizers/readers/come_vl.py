"""CoME-VL (arXiv 2604.03231): two frozen encoders read a picture, one for what it means and one for where things are.

    layers of each    v = Orth₂(LN(Σ_k softmax(α)_k · Orth₁(LN(z_k)))), with the same LN and orthogonal matrices
    of the second     a gated MLP with a residual
    fused             s = LN(P₁ v₁), d = LN(P₂ v₂): s + tanh(g) · attention(s → d), g = 0 at first
    attention         queries and keys are turned by their places (y, x) in [0, 1], with learnt frequencies; a query
                      sees what is at most 0.25 of the picture away

as the authors' code has it. They choose layers by the entropy of their attention, by eye: all 28 of SigLIP2, the last
14 of DINOv3. `FrozenEncoder.measure_entropies` gives entropies, `first_layers` and `second_layers` are the choice.
Their tokens then go through Molmo's pooling by attention and a gated MLP; here neighbours are averaged and mapped by a
matrix.

Shapes: B batch, L layers, N and M patches of both encoders, E and F their widths, W the width of the fusion, D that of
the decoder, H heads, C width of a head.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal

from unimodal.tokenizers.interface import MediaReader
from unimodal.tokenizers.readers.frozen_encoder import EncoderSettings, FrozenEncoder
from unimodal.tokenizers.stored import TokenizerConfig


class CoMEVLConfig(TokenizerConfig):
    """first, second: the encoders; fused tokens stand at the first one's patches. first_layers, second_layers: which of
    their layers, from 0; None: all. hidden: W. reach: how far a query sees, None: everywhere. pool: neighbours that are
    averaged in each direction. dropout: within the gated MLP. orthogonal: how a matrix becomes orthogonal; `cayley` is
    faster, and leaves out those that turn something by exactly half a circle."""

    family: Literal["come_vl"] = "come_vl"
    width: int = Field(ge=1)
    first: EncoderSettings
    second: EncoderSettings
    first_layers: tuple[int, ...] | None = None
    second_layers: tuple[int, ...] | None = None
    hidden: int = Field(default=1024, ge=2)
    heads: int = Field(default=8, ge=1)
    reach: float | None = Field(default=0.25, gt=0)
    pool: int = Field(default=1, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    orthogonal: Literal["matrix_exp", "cayley"] = "matrix_exp"


class LayerMix(nn.Module):
    """Some layers of an encoder as one map of features, through orthogonal matrices."""

    def __init__(self, width: int, num_layers: int, orthogonal_map: str = "matrix_exp") -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.each, self.last = (
            orthogonal(nn.Linear(width, width, bias=False), orthogonal_map=orthogonal_map) for _ in range(2)
        )
        self.weights = nn.Parameter(torch.zeros(num_layers))

    def forward(self, layers: Tensor) -> Tensor:
        """layers [L, B, N, E] → [B, N, E]."""
        mixed = torch.einsum("l,lbne->bne", self.weights.softmax(0), self.each(self.norm(layers)))
        out: Tensor = self.last(self.norm(mixed))
        return out


class GatedMlp(nn.Module):
    """A residual GEGLU of four times the width."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm, self.project = nn.LayerNorm(width), nn.Linear(width, 8 * width)
        self.drop, self.out = nn.Dropout(dropout), nn.Linear(4 * width, width)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.project(self.norm(x)).chunk(2, -1)
        return x + self.out(self.drop(value * F.gelu(gate)))


class PlaceRotation(nn.Module):
    """Turns pairs of a head's dimensions by π/2 · coordinate · frequency; a third of the pairs for each of t, y and x.

    Pictures have t = 0, so that its share of the pairs is not turned.
    """

    def __init__(self, head_width: int, cutoff: float = 256.0) -> None:
        super().__init__()
        space = 2 * (head_width // 6)
        self.counts = (head_width - 2 * space, space, space)
        self.frequencies = nn.ParameterList(
            nn.Parameter(torch.exp(torch.linspace(0, -math.log(cutoff), count // 2))) for count in self.counts
        )

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        """x [B, H, N, C] at places (y, x) [N, 2] → turned."""
        where = F.pad(places, (1, 0))  # t = 0
        angles = torch.cat(
            [0.5 * math.pi * where[:, axis, None] * own for axis, own in enumerate(self.frequencies)], -1
        )  # [N, C / 2]
        cos, sin = (one.repeat_interleave(2, -1) for one in (angles.cos(), angles.sin()))
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        return x * cos + torch.stack([-second, first], -1).flatten(-2) * sin


class PlacedAttention(nn.Module):
    """Tokens of one grid attend to those of another, by what they hold and where they are."""

    def __init__(self, width: int, heads: int, reach: float | None) -> None:
        super().__init__()
        self.heads, self.reach = heads, reach
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.rotation = PlaceRotation(width // heads)

    def forward(self, x: Tensor, y: Tensor, at: Tensor, to: Tensor) -> Tensor:
        """x [B, N, W] at places [N, 2] attends to y [B, M, W] at [M, 2] → [B, N, W]."""
        q, k, v = (
            layer(given).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, given in ((self.query, x), (self.key, y), (self.value, y))
        )
        mask = None
        if self.reach is not None:
            far = torch.cdist(at, to) > self.reach
            mask = torch.zeros(far.shape, dtype=q.dtype, device=q.device).masked_fill(far, torch.finfo(q.dtype).min / 2)
        z = F.scaled_dot_product_attention(self.rotation(q, at), self.rotation(k, to), v, attn_mask=mask)
        out: Tensor = self.out(z.transpose(1, 2).flatten(2))
        return out


class CoMEVLReader(MediaReader):
    """Pictures float [B, 3, S, S] in [0, 1] → features of width D. The encoders are frozen, all else learns.

    Raises ValueError for layers that an encoder does not have, and for sizes that do not divide.
    """

    modality: ClassVar[str] = "image"
    stored_dtype: ClassVar[torch.dtype] = torch.float32
    config_class: ClassVar[type[TokenizerConfig]] = CoMEVLConfig
    config: CoMEVLConfig

    def __init__(self, config: CoMEVLConfig):
        super().__init__(config)
        self.first, self.second = FrozenEncoder(config.first), FrozenEncoder(config.second)
        if config.hidden % (2 * config.heads) or config.hidden // config.heads < 6:
            raise ValueError(
                f"hidden {config.hidden} does not divide into {config.heads} heads of even width from 6 on"
            )
        if any(side % config.pool for side in self.first.grid):
            raise ValueError(f"pool {config.pool} does not divide a grid of {self.first.grid}")
        self.layers = tuple(
            _choose_layers(name, encoder, chosen)
            for name, encoder, chosen in (
                ("first_layers", self.first, config.first_layers), ("second_layers", self.second, config.second_layers)
            )
        )  # fmt: skip
        self.mix_first, self.mix_second = (
            LayerMix(encoder.width, len(chosen), config.orthogonal)
            for encoder, chosen in zip((self.first, self.second), self.layers, strict=True)
        )
        self.gated = GatedMlp(self.second.width, config.dropout)
        self.project_first, self.project_second = (
            nn.Linear(encoder.width, config.hidden) for encoder in (self.first, self.second)
        )
        self.norm_first, self.norm_second = nn.LayerNorm(config.hidden), nn.LayerNorm(config.hidden)
        self.attention = PlacedAttention(config.hidden, config.heads, config.reach)
        self.gate = nn.Parameter(torch.zeros(1))
        self.out = nn.Linear(config.hidden, config.width)
        self.num_features, self.width = self.first.num_patches // config.pool**2, config.width
        size = max(config.first.image_size, config.second.image_size)
        self.picture_size = (size, size)

    def look(self, x: Tensor) -> tuple[Tensor, ...]:
        """x: [B, 3, S, S] in [0, 1] → the chosen layers of both encoders, [B, L, N, E] and [B, L, M, F]."""
        return tuple(
            encoder.read_layers(x)[list(chosen)].transpose(0, 1)
            for encoder, chosen in zip((self.first, self.second), self.layers, strict=True)
        )

    def fuse(self, seen: tuple[Tensor, ...]) -> Tensor:
        """The result of `look` → the fused tokens [B, N, W], before they are pooled."""
        first = self.mix_first(seen[0].transpose(0, 1))
        second = self.gated(self.mix_second(seen[1].transpose(0, 1)))
        x, y = self.norm_first(self.project_first(first)), self.norm_second(self.project_second(second))
        at, to = (_list_places(encoder.grid, x.device) for encoder in (self.first, self.second))
        fused: Tensor = x + torch.tanh(self.gate) * self.attention(x, y, at, to)
        return fused

    def map(self, seen: tuple[Tensor, ...]) -> Tensor:
        """The result of `look` → [B, N / pool², D], with a gradient to all that learns."""
        fused = self.fuse(seen)
        if self.config.pool > 1:
            square = fused.transpose(1, 2).unflatten(2, self.first.grid)
            fused = F.avg_pool2d(square, self.config.pool).flatten(2).transpose(1, 2)
        mapped: Tensor = self.out(fused)
        return mapped

    @torch.inference_mode()
    def read(self, x: Tensor) -> Tensor:
        return self.map(self.look(x))


def _choose_layers(name: str, encoder: FrozenEncoder, chosen: tuple[int, ...] | None) -> tuple[int, ...]:
    layers = tuple(range(encoder.num_layers)) if chosen is None else chosen
    if not layers or not all(0 <= layer < encoder.num_layers for layer in layers):
        raise ValueError(f"{name} is {list(layers)}, and the {encoder.settings.kind} has layers 0 to "
                         f"{encoder.num_layers - 1}")  # fmt: skip
    return layers


def _list_places(grid: tuple[int, int], device: torch.device) -> Tensor:
    """Where the patches of a grid are, (y, x) from 0 to 1, [N, 2] in raster order."""
    y, x = (torch.linspace(0, 1, side, device=device) for side in grid)
    return torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).flatten(0, 1)

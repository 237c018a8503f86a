"""MingTok: one continuous latent for understanding and for drawing (arXiv 2510.06590).

Three transformers in a row: a low-level one makes a few numbers of each patch; a causal one widens them, in the order
of the patches, to features that a language model understands pictures by; a third draws pixels of those features alone.
Since the second is causal, latents that a model predicts one by one are widened one by one.

The network is that of inclusionAI/Ming-UniVision @3bbdd2f, mingtok/, with whose modules it was compared. Its training
(masked patches, features of a teacher) is in no released code; here it is trained by what it draws.

Shapes: B batch, N patches in raster order, C width of a latent, D of a transformer, p patch size of the pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention, silu

from unimodal.tokenizers.codes import Latents
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.trunks.timm_vit import FeedForward, FusedAttention, PatchProjection
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.authors_fields import AuthorsFields
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemLatents
from unimodal.tokenizers.systems.key_map import KeyMap

EPS = 1e-6


class MingtokPart(BaseModel):
    """One of the three transformers."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    width: int = Field(ge=1)
    num_layers: int = Field(ge=1)


class MingtokConfig(SystemConfig):
    """patch_size: pixels of a latent's side; pixel_patch: of the squares that are drawn. head_width: of every head.
    mean, scale: latents are given as (latent − mean) / scale."""

    family: Literal["mingtok"] = "mingtok"
    image_size: int = Field(default=512, ge=1)
    patch_size: int = Field(default=32, ge=1)
    pixel_patch: int = Field(default=16, ge=1)
    latent_width: int = Field(default=32, ge=1)
    head_width: int = Field(default=64, ge=1)
    low: MingtokPart = MingtokPart(width=768, num_layers=12)
    semantic: MingtokPart = MingtokPart(width=1024, num_layers=24)
    pixel: MingtokPart = MingtokPart(width=1024, num_layers=24)
    mean: float = 1.46817409
    scale: float = 8.09449291

    @model_validator(mode="after")
    def check_fit(self) -> Self:
        """ValueError for sizes that do not divide."""
        if self.image_size % self.patch_size or self.patch_size % self.pixel_patch:
            raise ValueError(
                f"image_size {self.image_size} must be whole patches of {self.patch_size}, and these whole squares of "
                f"pixel_patch {self.pixel_patch}"
            )
        for name, part in (("low", self.low), ("semantic", self.semantic), ("pixel", self.pixel)):
            if part.width % self.head_width:
                raise ValueError(f"{name}: heads of {self.head_width} do not divide a width of {part.width}")
        if self.low.width % self.latent_width or self.semantic.width % self.latent_width:
            raise ValueError(f"latent_width {self.latent_width} must divide the widths of low and semantic")
        return self


class GatedUnits(nn.Module):
    """A feed-forward whose SiLU units are gated (SwiGLU, arXiv 2002.05202); of 4·D units two thirds are kept, rounded
    up to eights."""

    def __init__(self, width: int):
        super().__init__()
        inner = (int(4 * width * 2 / 3) + 7) // 8 * 8
        self.w12, self.w3 = nn.Linear(width, 2 * inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        opened, units = self.w12(x).chunk(2, dim=-1)
        return self.w3(silu(opened) * units)


class CausalAttention(FusedAttention):
    """A position reads itself and those before it."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class MingtokBlock(nn.Module):
    """Attention and a feed-forward, each after a norm, residual."""

    def __init__(self, width: int, num_heads: int, causal: bool, gated: bool):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, EPS), nn.LayerNorm(width, EPS)
        self.attn = CausalAttention(width, num_heads) if causal else FusedAttention(width, num_heads)
        self.mlp = GatedUnits(width) if gated else FeedForward(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def make_blocks(part: MingtokPart, head_width: int, causal: bool = False, gated: bool = True) -> nn.ModuleList:
    """The layers of one of the transformers."""
    heads = part.width // head_width
    return nn.ModuleList(MingtokBlock(part.width, heads, causal, gated) for _ in range(part.num_layers))


class LowLevelEncoder(nn.Module):
    """Pictures in [-1, 1] → latents [B, N, C]; a class token stands behind the patches, and its latent is left out."""

    def __init__(self, config: MingtokConfig):
        super().__init__()
        width, count = config.low.width, (config.image_size // config.patch_size) ** 2
        self.latent_width = config.latent_width
        self.patch_embed = PatchProjection(width, config.patch_size)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, count + 1, width))
        self.blocks = make_blocks(config.low, config.head_width)
        self.out_norm, self.out_proj = nn.LayerNorm(width, EPS), nn.Linear(width, config.latent_width)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.patch_embed(x), self.cls_token.expand(len(x), -1, -1)], 1) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        tokens = tokens[:, :-1]
        averaged = tokens.unflatten(-1, (self.latent_width, -1)).mean(-1)
        return averaged + self.out_proj(gelu(self.out_norm(tokens)))


class SemanticDecoder(nn.Module):
    """Latents [B, N, C] → features [B, N, D], each of its latent and those before it."""

    def __init__(self, config: MingtokConfig):
        super().__init__()
        self.copies = config.semantic.width // config.latent_width
        self.in_proj = nn.Linear(config.latent_width, config.semantic.width)
        self.blocks = make_blocks(config.semantic, config.head_width, causal=True)
        self.norm = nn.LayerNorm(config.semantic.width, EPS)

    def forward(self, latents: Tensor) -> Tensor:
        tokens = self.in_proj(latents) + latents.repeat_interleave(self.copies, -1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class PixelDecoder(nn.Module):
    """Vectors of squares [B, M, D] → their pixels [B, M, 3·p²], colours fastest."""

    def __init__(self, config: MingtokConfig):
        super().__init__()
        self.blocks = make_blocks(config.pixel, config.head_width, gated=False)
        self.norm = nn.LayerNorm(config.pixel.width, EPS)
        self.head = nn.Linear(config.pixel.width, 3 * config.pixel_patch**2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class MingtokTokenizer(SystemLatents):
    """Pictures float [B, 3, S, S] in [0, 1] ⇄ Latents [B, N, C]. `expand` gives the features of latents."""

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[TokenizerConfig]] = MingtokConfig
    key_map: ClassVar[KeyMap] = KeyMap(
        rules=((r"(.*)\.blocks\.(\d+)\.(.*)", r"\1.blocks.0.\2.\3"),), ignored=(r"target_backbone\..*",)
    )
    config: MingtokConfig

    def __init__(self, config: MingtokConfig):
        super().__init__(config)
        self.low_level_encoder, self.semantic_decoder = LowLevelEncoder(config), SemanticDecoder(config)
        self.pixel_decoder = PixelDecoder(config)
        self.finer = config.patch_size // config.pixel_patch
        self.sem_to_pix = nn.Linear(config.semantic.width, config.pixel.width * self.finer**2)
        self.side, self.width = config.image_size // config.patch_size, config.latent_width
        self.picture_size, self.tokens_per_item = (config.image_size, config.image_size), self.side**2

    def encode_latents(self, x: Tensor) -> Tensor:
        """x: [B, 3, S, S] in [0, 1] → [B, N, C], normalised. ValueError for pictures of another size."""
        size = self.config.image_size
        if x.dim() != 4 or tuple(x.shape[1:]) != (3, size, size):
            raise ValueError(f"this MingTok takes pictures [B, 3, {size}, {size}]; got {tuple(x.shape)}")
        return (self.low_level_encoder(x * 2 - 1) - self.config.mean) / self.config.scale

    def expand(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, n, C], of the first n patches or of all → features [B, n, D]: what a language model
        is fed."""
        return self.semantic_decoder(latents * self.config.scale + self.config.mean)

    def draw(self, features: Tensor) -> Tensor:
        """Features [B, N, D] of all patches → [B, 3, S, S] in about [0, 1], not clamped."""
        fine, side, size = self.finer, self.side, self.config.pixel_patch
        cells = self.sem_to_pix(features).unflatten(-1, (fine, fine, -1)).unflatten(1, (side, side))
        squares = cells.transpose(2, 3).flatten(1, 4)  # [B, side·fine·side·fine, D], rows of squares
        pixels = self.pixel_decoder(squares).unflatten(-1, (size, size, 3)).unflatten(1, (side * fine, side * fine))
        return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3) / 2 + 0.5

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Latents:
        values = self.encode_latents(x)
        mask = torch.ones(values.shape[:2], dtype=torch.bool, device=x.device)
        return Latents(values, mask, (1, self.side, self.side))

    def decode_batch(self, coded: Latents, options: CodingOptions) -> Tensor:
        if any(count != self.side**2 for count in coded.counts) or coded.values.shape[2] != self.width:
            raise ValueError(f"a picture is {self.side**2} latents of width {self.width}; got {coded.counts} of width "
                             f"{coded.values.shape[2]}")  # fmt: skip
        return self.draw(self.expand(coded.values)).clamp(0, 1)

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """features: `meaning` [B, N, D], what a teacher's features are compared with."""
        features = self.expand(self.encode_latents(x))
        return Reconstruction(self.draw(features), x.new_zeros(()), None, {}, {"meaning": features})

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> MingtokConfig:
        """Their config.json."""
        own = AuthorsFields(fields)
        low, semantic, pixel = (own.open(name) for name in ("low_level_encoder", "semantic_decoder", "pixel_decoder"))
        return MingtokConfig(
            image_size=low.take_integer("img_size", 512),
            patch_size=low.take_integer("patch_size", 32),
            pixel_patch=pixel.take_integer("patch_size", 16),
            latent_width=low.take_integer("out_dim", 32),
            low=MingtokPart(width=low.take_integer("embed_dim", 768), num_layers=low.take_integer("depth", 12)),
            semantic=MingtokPart(
                width=semantic.take_integer("embed_dim", 1024), num_layers=semantic.take_integer("decoder_depth", 24)
            ),
            pixel=MingtokPart(
                width=pixel.take_integer("embed_dim", 1024), num_layers=pixel.take_integer("decoder_depth", 24)
            ),
            mean=own.take_number("mean", 0.0),
            scale=own.take_number("scaling_factor", 1.0),
        )

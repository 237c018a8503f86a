"""DualToken: what a place means and how it looks, read from two depths of one frozen tower (arXiv 2503.14324).

A late layer of SigLIP is quantized for meaning, an early one (with a still earlier one beside it) for looks, each by
residual levels that share a codebook of their own. The tower's last layers go on from the quantized meaning to its
pooled feature; a convolutional decoder makes pixels of the looks alone.

The network is that of songweii/DualToken @29e7c84, with whose modules it was compared; no weights of it are released.
The tower is frozen, as in its stage 0 up to the layer of meaning; its stage 1, which tunes the tower beside a frozen
copy, is not here. Both codebooks learn once a step from all levels; the authors' pixel codebook ("rq") after each.

Shapes: B batch, N places in raster order, K width of the tower, D width of a code, G = 2·levels codes of a place.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, interpolate, mse_loss, silu

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.attention_projection import AttentionProjection
from unimodal.tokenizers.parts.quantizers import ProductQuantizer, ResidualQuantizer, VectorQuantizer
from unimodal.tokenizers.parts.trunks.vision_tower import TowerSettings, VisionTower
from unimodal.tokenizers.parts.trunks.vqgan import ConvDecoder, ConvSettings
from unimodal.tokenizers.rows import check_counts
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemTokenizer


class DualTokenConfig(SystemConfig):
    """meaning_layer, looks_layer, shortcut_layer: after how many layers of the tower the three are read; the shortcut
    is added to the looks, shortcut_weight times. num_levels: codes of each of the two at a place. meaning_weight: of
    the loss that compares pooled features. decoder: reads a map of image_size / its factor places a side."""

    family: Literal["dualtoken"] = "dualtoken"
    tower: TowerSettings = TowerSettings(
        image_size=384, patch_size=14, width=1152, num_layers=27, num_heads=16, inner=4304
    )
    meaning_layer: int = Field(default=26, ge=1)
    looks_layer: int = Field(default=6, ge=1)
    shortcut_layer: int | None = 4
    shortcut_weight: float = 0.6
    num_levels: int = Field(default=8, ge=1)
    codebook_size: int = Field(default=16384, ge=2)
    code_width: int = Field(default=32, ge=1)
    decay: float = Field(default=0.99, gt=0, lt=1)
    decoder: ConvSettings = ConvSettings(multipliers=(1, 1, 4, 4, 8), attention_levels=(4,), latent_width=1024)
    meaning_weight: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def check_fit(self) -> Self:
        """ValueError for another tower, layers that it does not have, and sizes that do not divide."""
        if self.tower.kind != "siglip":
            raise ValueError(f"DualToken reads a tower of kind siglip; got {self.tower.kind}")
        for name in ("looks_layer", "shortcut_layer"):
            layer = getattr(self, name)
            if layer is not None and not 1 <= layer <= self.meaning_layer <= self.tower.num_layers:
                raise ValueError(
                    f"{name} {layer} and meaning_layer {self.meaning_layer} must rise, up to the tower's "
                    f"{self.tower.num_layers} layers"
                )
        if self.tower.width % self.code_width:
            raise ValueError(f"code_width {self.code_width} does not divide the tower's width {self.tower.width}")
        if self.tower.image_size % self.decoder.factor:
            raise ValueError(f"image_size {self.tower.image_size} is no multiple of the decoder's factor "
                             f"{self.decoder.factor}")  # fmt: skip
        return self


class LatentBlock(nn.Module):
    """A residual block that changes the width, its first convolution 1×1: [B, C, h, w] → [B, C', h, w]."""

    def __init__(self, inputs: int, outputs: int, num_groups: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(num_groups, inputs, 1e-6), nn.Conv2d(inputs, outputs, 1)
        self.norm2, self.conv2 = nn.GroupNorm(num_groups, outputs, 1e-6), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.nin_shortcut: nn.Module = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(silu(self.norm2(self.conv1(silu(self.norm1(x))))))
        return self.nin_shortcut(x) + y


class DualTokenTokenizer(SystemTokenizer):
    """Pictures of one size ⇄ G codes for each place, the levels of meaning first.

    ``encode``: float [B, 3, S, S] in [0, 1] → Codes [B, N, G]. Decoding reads the codes of looks;
    `describe` gives the feature that the codes of meaning stand for.
    """

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[TokenizerConfig]] = DualTokenConfig
    config: DualTokenConfig

    def __init__(self, config: DualTokenConfig):
        super().__init__(config)
        width, code_width = config.tower.width, config.code_width
        heads = width // code_width
        self.tower = VisionTower(config.tower)
        self.meaning_in, self.looks_in = (AttentionProjection(width, code_width, heads) for _ in range(2))
        self.shortcut_in = None if config.shortcut_layer is None else AttentionProjection(width, code_width, heads)
        self.meaning_out, self.looks_out = (
            AttentionProjection(code_width, width, heads, causal=True) for _ in range(2)
        )
        self.quantizer = ProductQuantizer([self._make_levels(), self._make_levels()])
        self.widen = LatentBlock(width, config.decoder.latent_width, config.decoder.num_norm_groups)
        self.decoder = ConvDecoder(config.decoder)
        self.codebook_sizes = self.quantizer.codebook_sizes
        count = config.tower.side**2
        self.segments, self.tokens_per_item = (("image", count),), count
        self.columns = {"image": config.tower.side}
        self.picture_size = (config.tower.image_size, config.tower.image_size)

    def _make_levels(self) -> ResidualQuantizer:
        config = self.config
        book = VectorQuantizer(
            config.codebook_size, config.code_width, commitment=1.0, learned_by="averages", decay=config.decay,
            dead_share=1e-2,  # the authors' running count of 1, at their 256 pictures a step
        )  # fmt: skip
        return ResidualQuantizer([book], config.num_levels)

    # ---- the two halves

    def encode_latents(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: [B, 3, S, S] in [0, 1] → latents [B, N, 2·D], the meaning first, and what the tower itself goes on with
        at the layer of meaning [B, N, K]."""
        size = self.config.tower.image_size
        if x.dim() != 4 or tuple(x.shape[1:]) != (3, size, size):
            raise ValueError(f"this DualToken takes pictures [B, 3, {size}, {size}]; got {tuple(x.shape)}")
        with torch.no_grad():
            layers = self.tower(x)
        looks = self.looks_in(layers[self.config.looks_layer])
        if self.shortcut_in is not None and self.config.shortcut_layer is not None:
            looks = looks + self.config.shortcut_weight * self.shortcut_in(layers[self.config.shortcut_layer])
        deep = layers[self.config.meaning_layer]
        return torch.cat([self.meaning_in(deep), looks], -1), deep

    def finish_tower(self, deep: Tensor) -> Tensor:
        """Vectors [B, N, K] at the layer of meaning → the tower's pooled feature [B, K]."""
        for layer in self.tower.list_layers()[self.config.meaning_layer :]:
            deep = layer(deep, None)
        pooled: Tensor = self.tower.network.get_submodule("head")(
            self.tower.network.get_submodule("post_layernorm")(deep)
        )
        return pooled

    def describe(self, values: Tensor) -> Tensor:
        """Quantized vectors [B, N, 2·D] → the picture's feature [B, K], made of their meaning alone."""
        return self.finish_tower(self.meaning_out(values[..., : self.config.code_width]))

    def decode_latents(self, values: Tensor) -> Tensor:
        """Quantized vectors [B, N, 2·D] → [B, 3, S, S] in about [0, 1], made of their looks alone, not clamped."""
        side, wanted = self.config.tower.side, self.config.tower.image_size // self.config.decoder.factor
        cells = self.looks_out(values[..., self.config.code_width :]).transpose(1, 2).unflatten(2, (side, side))
        if side != wanted:
            cells = interpolate(cells, (wanted, wanted), mode="bilinear")
        return self.decoder(self.widen(cells)) / 2 + 0.5

    # ---- the contract

    def extract_features(self, x: Tensor) -> Tensor | None:
        with torch.inference_mode():
            return self.finish_tower(self.encode_latents(x)[1])

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        side = self.config.tower.side
        return Codes.whole(self.quantizer(self.encode_latents(x)[0]).ids, (1, side, side))

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        check_counts(codes, self.config.tower.side**2)
        return self.decode_latents(self.quantizer.look_up(codes.ids)).clamp(0, 1)

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """The loss holds both halves' commitments and, `meaning_weight` times, squared error + 1 − cosine between the
        pooled feature of the codes and that of the tower. features: `picture` [B, 1, K], `codes` [B, N, 2·D]."""
        z, deep = self.encode_latents(x)
        made = self.quantizer(z, generator=generator)
        with torch.no_grad():
            wanted = self.finish_tower(deep)
        pooled = self.describe(made.values)
        apart = mse_loss(pooled, wanted) + 1 - cosine_similarity(pooled, wanted, dim=-1).mean()
        loss = 2 * made.loss + self.config.meaning_weight * apart  # the quantizer gives the mean of its two halves
        numbers = {**made.numbers, "meaning_distance": float(apart.detach())}
        features = {"picture": pooled.unsqueeze(1), "codes": made.values}
        return Reconstruction(self.decode_latents(made.values), loss, made.ids, numbers, features)

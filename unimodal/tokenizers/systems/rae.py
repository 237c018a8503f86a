"""Representation autoencoder: the features of a frozen encoder as latents, and a decoder that draws from them
(arXiv 2510.11690), as CubiD (2603.19232) uses it.

The encoder is DINOv2 with registers whose last norm has no learned scale and shift; the decoder a transformer with a
class token and sine positions, a linear layer a patch behind it.

Shapes: B batch, N places in raster order, D width of the features, p patch size of the decoder.
"""

from __future__ import annotations

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from unimodal.tokenizers.codes import Latents
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.positions import make_mae_positions
from unimodal.tokenizers.parts.trunks.hub_vit import HubVit, HubVitSizes
from unimodal.tokenizers.parts.trunks.vision_tower import TowerSettings, VisionTower
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemLatents


class RaeConfig(SystemConfig):
    """tower: the encoder, which resizes pictures to its own size. patch_size: of the decoder, which makes pictures of
    patch_size · the tower's places a side. width, num_layers, num_heads, inner: of the decoder. noise: deviation of the
    noise that latents get in training, times a uniform number a picture."""

    family: Literal["rae"] = "rae"
    tower: TowerSettings = TowerSettings(kind="dinov2_registers", normalize_affine=False)
    patch_size: int = Field(default=16, ge=1)
    width: int = Field(default=1152, ge=4)
    num_layers: int = Field(default=28, ge=1)
    num_heads: int = Field(default=16, ge=1)
    inner: int = Field(default=4096, ge=1)
    noise: float = Field(default=0.0, ge=0)

    @property
    def image_size(self) -> int:
        """Side of the pictures that the decoder makes."""
        return self.patch_size * self.tower.side

    @model_validator(mode="after")
    def check_heads(self) -> Self:
        """ValueError for heads that do not divide the decoder's width."""
        if self.width % self.num_heads:
            raise ValueError(f"{self.num_heads} heads do not divide the decoder's width of {self.width}")
        return self


class RaeTokenizer(SystemLatents):
    """Pictures float [B, 3, S, S] in [0, 1] ⇄ Latents [B, N, D], normalised by place and dimension once
    `fit_statistics` has seen pictures."""

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[TokenizerConfig]] = RaeConfig
    config: RaeConfig
    latent_mean: Tensor
    latent_variance: Tensor
    positions: Tensor

    def __init__(self, config: RaeConfig):
        super().__init__(config)
        self.tower, self.width = VisionTower(config.tower), config.tower.width
        count = config.tower.side**2
        self.decoder_embed = nn.Linear(self.width, config.width)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, config.width))
        self.decoder = HubVit(HubVitSizes(config.width, config.num_layers, config.num_heads, config.inner))
        self.decoder_pred = nn.Linear(config.width, 3 * config.patch_size**2)
        positions = torch.cat([torch.zeros(1, config.width), make_mae_positions(config.tower.side, config.width)])
        self.register_buffer("positions", positions, persistent=False)
        self.register_buffer("latent_mean", torch.zeros(count, self.width))
        self.register_buffer("latent_variance", torch.ones(count, self.width))
        self.picture_size, self.tokens_per_item = (config.image_size, config.image_size), count

    @torch.no_grad()
    def fit_statistics(self, x: Tensor) -> None:
        """Sets mean and variance of each place and dimension by pictures [B, 3, S, S], two or more."""
        if len(x) < 2:
            raise ValueError(f"statistics are of two pictures at least; got {len(x)}")
        features = self.tower.read_last(x)
        self.latent_mean.copy_(features.mean(0))
        self.latent_variance.copy_(features.var(0))

    def encode_latents(self, x: Tensor) -> Tensor:
        """x: [B, 3, S, S] in [0, 1] → [B, N, D]. ValueError for pictures of another size."""
        size = self.config.image_size
        if x.dim() != 4 or tuple(x.shape[1:]) != (3, size, size):
            raise ValueError(f"this autoencoder takes pictures [B, 3, {size}, {size}]; got {tuple(x.shape)}")
        with torch.no_grad():
            return (self.tower.read_last(x) - self.latent_mean) / (self.latent_variance + 1e-5).sqrt()

    def decode_latents(self, latents: Tensor) -> Tensor:
        """[B, N, D] → [B, 3, S, S] in about [0, 1], not clamped."""
        tokens = self.decoder_embed(latents * (self.latent_variance + 1e-5).sqrt() + self.latent_mean)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1) + self.positions
        pixels = self.decoder_pred(self.decoder.run_layers(tokens))[:, 1:]
        side, size = self.config.tower.side, self.config.patch_size
        cells = pixels.unflatten(-1, (size, size, 3)).unflatten(1, (side, side))  # [B, h, w, p, p, 3]
        made = cells.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        return made * self.tower.deviation + self.tower.mean

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Latents:
        values, side = self.encode_latents(x), self.config.tower.side
        return Latents(values, torch.ones(values.shape[:2], dtype=torch.bool, device=x.device), (1, side, side))

    def decode_batch(self, coded: Latents, options: CodingOptions) -> Tensor:
        count = self.config.tower.side**2
        if any(found != count for found in coded.counts) or coded.values.shape[2] != self.width:
            raise ValueError(f"a picture is {count} latents of width {self.width}; got {coded.counts} of width "
                             f"{coded.values.shape[2]}")  # fmt: skip
        return self.decode_latents(coded.values).clamp(0, 1)

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        latents = self.encode_latents(x)
        if self.training and self.config.noise:
            amount = self.config.noise * torch.rand(len(x), 1, 1, generator=generator).to(latents)
            latents = latents + amount * torch.randn(latents.shape, generator=generator).to(latents)
        return Reconstruction(self.decode_latents(latents), x.new_zeros(()))

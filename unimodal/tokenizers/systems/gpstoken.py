"""GPSToken (arXiv 2509.01109): a picture as Gaussians in the plane, small where there is detail.

The picture is cut into regions of even detail; each begins as a Gaussian there, reads its region and the others through
a transformer, and becomes a Gaussian with features. Their sum is a map, which convolutions decode.

Shapes: B batch, N tokens, D width, R samples of a region's side, C channels, H/W height and width.
"""

from __future__ import annotations

from math import ceil
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import gelu

from unimodal.tokenizers.codes import Latents
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.entropy_split import Region, split_regions
from unimodal.tokenizers.parts.heads.splat import splat_gaussians
from unimodal.tokenizers.parts.query_networks import TransformerSize
from unimodal.tokenizers.parts.trunks.vit import VitBlock
from unimodal.tokenizers.parts.trunks.vqgan import ConvBlock, ConvDecoder, ConvSettings
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemLatents


class GPSTokenConfig(SystemConfig):
    """num_tokens: N, of a picture as it is encoded; any number is decoded. stem_width: channels of the map that regions
    are read from. region_size: R. encoder: the transformer. reach: deviations after which a Gaussian ends. least_side
    and detail_weight: see `split_regions`. pixels: the convolutions behind the map of Gaussians, `latent_width` the
    features of one."""

    family: str = "gpstoken"
    image_size: int = Field(default=256, ge=2)
    num_tokens: int = Field(default=128, ge=1)
    stem_width: int = Field(default=128, ge=1)
    region_size: int = Field(default=8, ge=1)
    encoder: TransformerSize = TransformerSize(width=512, num_layers=30, num_heads=8)
    reach: float = Field(default=3.0, gt=0)
    least_side: int = Field(default=8, ge=2)
    detail_weight: float = 2.5
    pixels: ConvSettings = ConvSettings(multipliers=(1, 2, 4), latent_width=16)

    @model_validator(mode="after")
    def check_fit(self) -> Self:
        """ValueError for sizes that do not fit each other."""
        if self.image_size % self.pixels.factor:
            raise ValueError(f"pixels make {self.pixels.factor} times the map; image_size is {self.image_size}")
        if self.stem_width % self.pixels.num_norm_groups:
            raise ValueError(f"stem_width {self.stem_width} is not whole groups of {self.pixels.num_norm_groups}")
        if self.encoder.width % self.encoder.num_heads:
            raise ValueError(f"encoder: {self.encoder.num_heads} heads do not divide {self.encoder.width}")
        return self


class GPSTokenLatents(SystemLatents):
    """Pictures ⇄ N tokens of 5 + features numbers: a Gaussian as `splat_gaussians` has it, then its features."""

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[GPSTokenConfig]] = GPSTokenConfig
    config: GPSTokenConfig

    def __init__(self, config: GPSTokenConfig):
        super().__init__(config)
        width, stem, area = config.encoder.width, config.stem_width, config.region_size**2
        blocks = [ConvBlock(stem, stem, config.pixels) for _ in range(2)]
        self.stem = nn.Sequential(nn.Conv2d(3, stem, 3, padding=1), *blocks)
        self.read = nn.Conv2d(stem, width, 1)
        self.start = nn.Embedding(1, width)
        self.place_in, self.place_out = nn.Linear(5, width), nn.Linear(width, width)
        self.region_layers = nn.ModuleList([nn.Linear(area, 1) for _ in range(config.encoder.num_layers)])
        self.blocks = nn.ModuleList(
            [VitBlock(width, config.encoder.num_heads) for _ in range(config.encoder.num_layers)]
        )
        self.to_gaussians, self.to_features = nn.Linear(width, 5), nn.Linear(width, config.pixels.latent_width)
        nn.init.zeros_(self.to_gaussians.weight)
        nn.init.zeros_(self.to_gaussians.bias)
        self.decoder = ConvDecoder(config.pixels)
        self.width = 5 + config.pixels.latent_width
        self.tokens_per_item = config.num_tokens
        self.picture_size = (config.image_size, config.image_size)

    def encode_tokens(self, x: Tensor) -> Tensor:
        """x: float [B, 3, H, W] in [0, 1] → tokens float [B, N, 5 + features]. ValueError for another size."""
        size, config = self.config.image_size, self.config
        if x.dim() != 4 or tuple(x.shape[1:]) != (3, size, size):
            raise ValueError(f"gpstoken takes [B, 3, {size}, {size}] in [0, 1]; got {tuple(x.shape)}")
        regions = [split_regions(each, config.num_tokens, config.least_side, config.detail_weight) for each in x]
        started = torch.stack([place_gaussians(each, size) for each in regions]).to(x)
        maps = self.stem(2 * x - 1)
        pooled = torch.stack(
            [pool_regions(each, of, config.region_size) for each, of in zip(maps, regions, strict=True)]
        )
        read = self.read(pooled.flatten(0, 1)).flatten(2)  # [B·N, D, R²]
        tokens = self.start.weight + self.place_out(gelu(self.place_in(started)))
        for layer, block in zip(self.region_layers, self.blocks, strict=True):
            tokens = block(tokens + layer(read)[..., 0].view_as(tokens))
        return torch.cat([move_gaussians(started, self.to_gaussians(tokens)), self.to_features(tokens)], -1)

    def decode_tokens(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """tokens: float [B, n, 5 + features], of any number → pictures [B, 3, H, W], not clamped. mask: bool [B, n],
        False where there is no token."""
        gaussians, features = tokens[..., :5], tokens[..., 5:]
        if mask is not None:
            gaussians = torch.where(mask[..., None], gaussians, gaussians.new_tensor([1.0, 1, 0, 0, 0]))
            features = features * mask[..., None]
        side = self.config.image_size // self.config.pixels.factor
        maps = splat_gaussians(gaussians, features, (side, side), self.config.reach)
        return (self.decoder(maps) + 1) / 2

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        tokens = self.encode_tokens(x)
        return Reconstruction(self.decode_tokens(tokens), tokens.new_zeros(()), features={"tokens": tokens})

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Latents:
        tokens = self.encode_tokens(x)
        return Latents(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=x.device), order="regions")

    def decode_batch(self, coded: Latents, options: CodingOptions) -> Tensor:
        if coded.values.shape[2] != self.width:
            raise ValueError(f"tokens of gpstoken have {self.width} numbers; got {coded.values.shape[2]}")
        return self.decode_tokens(coded.values, coded.mask).clamp(0, 1)


def place_gaussians(regions: list[Region], size: int) -> Tensor:
    """A Gaussian in the middle of each region of a square picture, three deviations to its sides: float [N, 5]."""
    rows = []
    for row, column, height, width in regions:
        x, y = ((2 * start + length - 1) / (size - 1) - 1 for start, length in ((column, width), (row, height)))
        rows.append((max(width - 1, 0.5) / size * 2 / 3, max(height - 1, 0.5) / size * 2 / 3, 0.0, x, y))
    return torch.tensor(rows)


def move_gaussians(gaussians: Tensor, changes: Tensor) -> Tensor:
    """Gaussians and changes, float [B, N, 5] each → Gaussians whose deviations stay in (0, 1) and whose other numbers
    stay in (-1, 1): what changes is the logit."""
    shift, scale = gaussians.new_tensor([0.0, 0, 1, 1, 1]), gaussians.new_tensor([1.0, 1, 2, 2, 2])
    shares = ((gaussians + shift) / scale).clamp(1e-6, 1 - 1e-6)
    return (shares.logit() + changes).sigmoid() * scale - shift


def pool_regions(maps: Tensor, regions: list[Region], size: int) -> Tensor:
    """maps: float [C, H, W] → R×R averages of each region, float [N, C, R, R], as RoIAlign takes them (Mask R-CNN,
    arXiv 1703.06870): of points at most a pixel apart, between pixels by the nearest four."""
    down = torch.stack([weigh_line(row, height, maps.shape[1], size) for row, _, height, _ in regions]).to(maps)
    across = torch.stack([weigh_line(column, width, maps.shape[2], size) for _, column, _, width in regions]).to(maps)
    return torch.einsum("nay,cyx,nbx->ncab", down, maps, across)


def weigh_line(start: int, length: int, total: int, size: int) -> Tensor:
    """How much each of `total` pixels counts in each of R averages along a line, float [R, total]."""
    extent = length - 1
    num = max(1, ceil(extent / size))
    points = start - 0.5 + (torch.arange(size * num) + 0.5) / num * extent / size
    distances = (points.clamp(0, total - 1)[:, None] - torch.arange(total)).abs()
    return (1 - distances).clamp(min=0).view(size, num, total).mean(1)

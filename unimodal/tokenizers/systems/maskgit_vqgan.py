"""The VQGAN of MaskGIT (arXiv 2202.04200) as TiTok's authors hold it: the teacher of TiTok's first stage, whose decoder
the second one begins from.

The network is modeling/modules/maskgit_vqgan.py of bytedance/1d-tokenizer @942a96f. Pictures of any size are taken that
the factor divides.

Shapes: B batch, N positions in raster order, D depth of a code, h and w sides of the map.
"""

from __future__ import annotations

from math import prod
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.quantizers import VectorQuantizer
from unimodal.tokenizers.parts.trunks.maskgit import MaskgitDecoder, MaskgitEncoder
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemTokenizer
from unimodal.tokenizers.systems.key_map import KeyMap


class MaskgitVqganConfig(SystemConfig):
    """The settings of the released size by default. channels, multipliers, num_blocks, num_groups: see
    `MaskgitDecoder`."""

    family: Literal["maskgit_vqgan"] = "maskgit_vqgan"
    image_size: int = Field(default=256, ge=1)
    num_codes: int = Field(default=1024, ge=2)
    depth: int = Field(default=256, ge=1)
    channels: int = Field(default=128, ge=1)
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_blocks: int = Field(default=2, ge=1)
    num_groups: int = Field(default=32, ge=1)
    commitment: float = Field(default=0.25, ge=0)

    @property
    def factor(self) -> int:
        """Pixels of a position's side."""
        return int(2 ** (len(self.multipliers) - 1))

    @model_validator(mode="after")
    def check_fit(self) -> Self:
        """ValueError for pictures that are no whole number of positions, and groups that do not divide a width."""
        if not self.multipliers or self.image_size % self.factor:
            raise ValueError(f"image_size {self.image_size} is no multiple of {self.factor}, what the levels halve to")
        odd = [width for width in self.multipliers if self.channels * width % self.num_groups]
        if odd or self.channels % self.num_groups:
            raise ValueError(f"num_groups {self.num_groups} do not divide channels {self.channels} at every level")
        return self


class MaskgitVqganTokenizer(SystemTokenizer):
    """Pictures float [B, 3, H, W] in [0, 1] ⇄ Codes [B, h · w, 1]."""

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[TokenizerConfig]] = MaskgitVqganConfig
    key_map: ClassVar[KeyMap] = KeyMap(rules=((r"quantizer\.codebook", "quantize.embedding.weight"),))
    config: MaskgitVqganConfig

    def __init__(self, config: MaskgitVqganConfig):
        super().__init__(config)
        sizes = (config.depth, config.channels, config.multipliers, config.num_blocks, config.num_groups)
        self.encoder, self.decoder = MaskgitEncoder(*sizes), MaskgitDecoder(*sizes)
        self.quantizer = VectorQuantizer(config.num_codes, config.depth, commitment=config.commitment)
        side = config.image_size // config.factor
        self.codebook_sizes, self.tokens_per_item = self.quantizer.codebook_sizes, side**2
        self.segments = ((self.modality, self.tokens_per_item),)
        self.picture_size = (config.image_size, config.image_size)
        self.columns = {self.modality: side}

    def find_grid(self, x: Tensor) -> tuple[int, int]:
        """Rows and columns of codes of pictures [B, 3, H, W]."""
        return x.shape[2] // self.config.factor, x.shape[3] // self.config.factor

    def encode_map(self, x: Tensor) -> Tensor:
        """x: float [B, 3, H, W] in [0, 1] → vectors before quantization [B, N, D]. ValueError for sides that the factor
        does not divide."""
        factor = self.config.factor
        if x.dim() != 4 or x.shape[1] != 3 or not all(self.find_grid(x)) or x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(f"maskgit_vqgan takes [B, 3, H, W] with sides that {factor} divides; got {tuple(x.shape)}")
        return self.encoder(x).flatten(2).transpose(1, 2)

    def decode_map(self, vectors: Tensor, grid: tuple[int, int]) -> Tensor:
        """Codes' vectors [B, N, D] of h rows and w columns → pictures [B, 3, H, W], not clamped."""
        return self.decoder(vectors.transpose(1, 2).unflatten(2, grid))

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        quantized = self.quantizer(self.encode_map(x))
        decoded = self.decode_map(quantized.values, self.find_grid(x))
        return Reconstruction(decoded, quantized.loss, quantized.ids, quantized.numbers, {"codes": quantized.values})

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        return Codes.whole(self.quantizer(self.encode_map(x)).ids, (1, *self.find_grid(x)))

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        side = self.config.image_size // self.config.factor
        grid = (side, side) if codes.grid is None else codes.grid[1:]
        if any(count != prod(grid) for count in codes.counts):
            raise ValueError(f"a picture of maskgit_vqgan is {grid[0]}×{grid[1]} codes; got {codes.counts}")
        return self.decode_map(self.quantizer.look_up(codes.ids), grid).clamp(0, 1)

"""The sizes of nano's image tokenizer."""

from __future__ import annotations

from typing import Literal

from unimodal.tokenizers.stored import TokenizerConfig


class ImageTokenizerConfig(TokenizerConfig):
    family: Literal["semantic_pixel_fsq"] = "semantic_pixel_fsq"
    image_size: int = 64
    levels: tuple[int, ...] = (8, 8, 8, 8)
    num_semantic: int = 3
    num_prototypes: int = 0  # the size of the semantic codebook; set when it is fitted
    num_looks: int = 0  # the size of the codebook of whole pictures; set when it is fitted
    look_components: int = 320
    look_patch: int = 3  # thumbnail pixels a side of one of the grid's cells
    semantic_dims: int = 256
    trunk_size: int = 128  # pixels a side at which the frozen trunk sees the picture
    conv_channels: int = 96
    width: int = 192
    num_heads: int = 3
    encoder_layers: int = 2
    decoder_layers: int = 4
    conv_blocks: int = 2  # residual blocks at 16×16, each side

    @property
    def grid(self) -> int:
        return self.image_size // 8

    @property
    def num_pixel(self) -> int:
        return self.grid**2 - self.num_semantic - 1

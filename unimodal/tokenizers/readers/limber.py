"""LiMBeR (arXiv 2209.15162): one linear map from a frozen encoder's features into a frozen language model's prompt.

Shapes: B batch, N patches, E width of the encoder, D width of the decoder.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from unimodal.tokenizers.interface import MediaReader
from unimodal.tokenizers.readers.frozen_encoder import EncoderSettings, FrozenEncoder
from unimodal.tokenizers.stored import TokenizerConfig


class LimberConfig(TokenizerConfig):
    """width: D. encoder: the frozen one."""

    family: Literal["limber"] = "limber"
    width: int = Field(ge=1)
    encoder: EncoderSettings


class LimberReader(MediaReader):
    """Pictures float [B, 3, S, S] in [0, 1] → N features of width D. `map` alone learns."""

    modality: ClassVar[str] = "image"
    stored_dtype: ClassVar[torch.dtype] = torch.float32
    config_class: ClassVar[type[TokenizerConfig]] = LimberConfig
    config: LimberConfig

    def __init__(self, config: LimberConfig):
        super().__init__(config)
        self.encoder = FrozenEncoder(config.encoder)
        self.linear = nn.Linear(self.encoder.width, config.width)
        self.num_features, self.width = self.encoder.num_patches, config.width
        self.picture_size = (config.encoder.image_size, config.encoder.image_size)

    def look(self, x: Tensor) -> tuple[Tensor, ...]:
        """x: [B, 3, S, S] in [0, 1] → what the frozen encoder sees, [B, N, E]: all that `map` needs."""
        return (self.encoder.read_last(x),)

    def map(self, seen: tuple[Tensor, ...]) -> Tensor:
        """The result of `look` → [B, N, D], with a gradient to the map."""
        mapped: Tensor = self.linear(seen[0])
        return mapped

    @torch.inference_mode()
    def read(self, x: Tensor) -> Tensor:
        return self.map(self.look(x))

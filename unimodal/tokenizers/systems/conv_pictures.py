"""The settings that systems of VQGAN convolutions over square pictures share."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from unimodal.tokenizers.parts.trunks.vqgan import ConvSettings
from unimodal.tokenizers.systems.base import SystemConfig


class ConvPictureConfig(SystemConfig, ConvSettings):
    """image_size: of the squares that files are fitted to."""

    image_size: int = Field(default=256, ge=1)

    @property
    def side(self) -> int:
        """Positions of a row of the map."""
        return self.image_size // self.factor

    @model_validator(mode="after")
    def check_size(self) -> Self:
        """ValueError for pictures that are no whole number of positions."""
        if self.image_size % self.factor:
            raise ValueError(f"image_size {self.image_size} is no multiple of {self.factor}, what the levels halve to")
        return self

"""What the pretrained picture tokenizers share: how pixels are scaled, how a picture is fitted, where the weights are.

A picture is fitted as the checkpoint's own image processor in transformers does it, by Pillow on 8-bit pixels, so that
the codes of a file are those of that processor and network.

Shapes: B batch, H and W height and width, S size.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from unimodal.tokenizers.pretrained.base import (
    PretrainedConfig,
    PretrainedTokenizer,
    check_kind,
    image_processor_settings,
    load_reference,
    read_weights,
)

VQ_PREFIX = "vqmodel."


class PretrainedImageConfig(PretrainedConfig):
    """A pixel p in [0, 1] is given to the network as (p · rescale - mean) / deviation."""

    image_size: int = Field(ge=1)
    rescale: float = 1.0
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]


class PixelScale:
    """How the pixels of a network with such a config are scaled."""

    config: PretrainedImageConfig

    def scaled(self, x: Tensor) -> Tensor:
        """[B, 3, …] in [0, 1] → what the network takes."""
        mean, deviation = self._moments(x)
        return (x.float() * self.config.rescale - mean) / deviation

    def unscaled(self, x: Tensor) -> Tensor:
        """The inverse of `scaled`, for what the network gives, clamped to [0, 1]."""
        mean, deviation = self._moments(x)
        return ((x * deviation + mean) / self.config.rescale).clamp(0, 1)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, 3, *[1] * (x.dim() - 2))
        return x.new_tensor(self.config.image_mean).view(shape), x.new_tensor(self.config.image_std).view(shape)


class PretrainedImageTokenizer(PixelScale, PretrainedTokenizer):
    """Pictures in [0, 1]; `fit` makes one of a file's pixels."""

    modality: ClassVar[str] = "image"
    config: PretrainedImageConfig

    @abstractmethod
    def fit(self, picture: Tensor) -> Tensor:
        """uint8 [3, H, W] → float [3, h, w] in [0, 1], as the checkpoint's image processor fits it."""


def vq_checkpoint(
    folder: Path, config_class: Any, standalone: str, model_class: Any, what: str
) -> tuple[Any, dict[str, Tensor]]:
    """The config and weights of the VQ network in the checkpoint of a whole model or of that network alone."""
    whole = config_class.model_type
    kind = check_kind(folder, (whole, standalone), what)
    if kind == standalone:
        model = load_reference(model_class, folder)
        return model.config, model.state_dict()
    config = config_class.from_pretrained(folder, local_files_only=True)
    weights = read_weights(folder, VQ_PREFIX)
    if not weights:
        raise ValueError(f"{folder} has no image tokenizer: no weights named {VQ_PREFIX}*; take the whole checkpoint")
    return config.vq_config, weights


def pixel_settings(folder: Path, mean: float, deviation: float, rescale: float | None = None) -> dict[str, Any]:
    """mean, deviation and rescaling that the checkpoint's image processor uses; those given where it names none."""
    found = image_processor_settings(folder)
    factor = found.get("rescale_factor", rescale)
    return {
        "image_mean": tuple(found.get("image_mean") or [mean] * 3),
        "image_std": tuple(found.get("image_std") or [deviation] * 3),
        "rescale": 1.0 if factor is None else _near_one(factor * 255),
    }


def _near_one(value: float) -> float:
    return 1.0 if abs(value - 1) < 1e-6 else value  # 0.00392156862745098 is 1/255


def resized(picture: Tensor, height: int, width: int, resample: str) -> Tensor:
    """uint8 [3, H, W] → uint8 [3, height, width] by Pillow's filter of that name: "BICUBIC" or "LANCZOS"."""
    if picture.dtype != torch.uint8 or picture.dim() != 3 or picture.shape[0] != 3 or 0 in picture.shape:
        raise ValueError(f"expected a uint8 [3, H, W] picture, got {picture.dtype} {list(picture.shape)}")
    if tuple(picture.shape[1:]) == (height, width):
        return picture
    from PIL import Image

    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    small = image.resize((width, height), resample=Image.Resampling[resample], reducing_gap=None)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()


def check_pictures(x: Tensor, height: int, width: int, what: str) -> None:
    if x.dim() != 4 or x.shape[1] != 3 or tuple(x.shape[2:]) != (height, width) or not len(x):
        raise ValueError(f"the {what} tokenizer takes pictures [B, 3, {height}, {width}]; got {tuple(x.shape)}")

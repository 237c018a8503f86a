"""What the pretrained picture tokenizers share: how pixels are scaled, how a picture is fitted, where the weights are.

A picture is fitted as the checkpoint's own image processor in transformers does it, by Pillow on 8-bit pixels, so that
the codes of a file are those of that processor and network.

Shapes: B batch, H and W height and width, S size.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypedDict

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from unimodal.files import describe_error, read_json
from unimodal.tokenizers.interface import FitMode
from unimodal.tokenizers.pretrained.base import (
    DOWNLOAD_AGAIN,
    NetworkConfig,
    NetworkTokenizer,
    check_kind,
    load_reference,
    read_weights,
)

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

VQ_PREFIX = "vqmodel."
IMAGE_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


class NetworkPixelConfig(NetworkConfig):
    """A pixel p in [0, 1] is given to the network as (p · rescale - mean) / deviation."""

    rescale: float = 1.0
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]


class NetworkImageConfig(NetworkPixelConfig):
    """Pictures are squares of so many pixels."""

    image_size: int = Field(ge=1)


class PixelScale:
    """How the pixels of a network with such a config are scaled."""

    config: NetworkPixelConfig

    def scale_pixels(self, x: Tensor) -> Tensor:
        """[B, 3, …] in [0, 1] → what the network takes."""
        mean, deviation = self._moments(x)
        return (x.float() * self.config.rescale - mean) / deviation

    def unscale_pixels(self, x: Tensor) -> Tensor:
        """The inverse of `scale_pixels`, for what the network gives, clamped to [0, 1]."""
        mean, deviation = self._moments(x)
        return ((x * deviation + mean) / self.config.rescale).clamp(0, 1)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, 3, *[1] * (x.dim() - 2))
        return x.new_tensor(self.config.image_mean).view(shape), x.new_tensor(self.config.image_std).view(shape)


class NetworkImageTokenizer(PixelScale, NetworkTokenizer):
    """Pictures in [0, 1]; `fit` makes one of a file's pixels as the checkpoint's image processor does, in any mode."""

    modality: ClassVar[str] = "image"
    config: NetworkPixelConfig
    side: int | None  # codes of a square's side

    def describe(self, size: int | None, factor: int, codebook_size: int, frames: int | None = None) -> None:
        """Sets what the contract asks for; called once by each family.

        size: pixels of a square, None for any shape. factor: pixels of a code's side. frames: codes of a clip in time.
        """
        self.side = None if size is None else size // factor
        self.picture_size = None if size is None else (size, size)
        self.codebook_sizes = (codebook_size,)
        self.tokens_per_item = None if self.side is None else (frames or 1) * self.side**2
        self.segments = ((self.modality, self.tokens_per_item),)
        self.columns = {} if self.side is None else {self.modality: self.side}

    def code_features(self, block: str, group: int = 0) -> Tensor | None:
        """The rows of the network's codebook."""
        if block != self.modality or group:
            return None
        return self.network.quantize.embedding.weight.detach().float().cpu()

    @abstractmethod
    def fit(self, medium: Tensor, mode: FitMode = "pad") -> Tensor:
        """uint8 [3, H, W] → float [3, h, w] in [0, 1], by the checkpoint's own rule, whatever the mode."""


class ImageProcessorSettings(BaseModel):
    """What a checkpoint's image processor says of pictures; None where it says nothing."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    rescale_factor: float | None = None
    image_mean: tuple[float, float, float] | None = None
    image_std: tuple[float, float, float] | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    min_size: int | None = None


class PixelSettings(TypedDict):
    """The fields of `NetworkImageConfig` that an image processor says."""

    rescale: float
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]


def read_image_processor(folder: Path) -> ImageProcessorSettings:
    """The settings of the checkpoint's image processor. Raises ValueError, in one line, for a file that is broken."""
    for name in IMAGE_PROCESSOR_FILES:
        path = folder / name
        if path.is_file():
            fields = read_json(path, DOWNLOAD_AGAIN)
            own = fields.get("image_processor", fields)
            if isinstance(own, dict) and ("image_mean" in own or "rescale_factor" in own):
                try:
                    return ImageProcessorSettings.model_validate(own)
                except ValidationError as error:
                    raise ValueError(f"{path}: {describe_error(error)}; {DOWNLOAD_AGAIN}") from None
    return ImageProcessorSettings()


def read_pixel_settings(folder: Path, mean: float, deviation: float, rescale: float | None = None) -> PixelSettings:
    """Mean, deviation and rescaling of the checkpoint's image processor; those given where it names none."""
    found = read_image_processor(folder)
    factor = rescale if found.rescale_factor is None else found.rescale_factor
    return {
        "image_mean": found.image_mean or (mean, mean, mean),
        "image_std": found.image_std or (deviation, deviation, deviation),
        "rescale": 1.0 if factor is None else _near_one(factor * 255),
    }


def read_vq_checkpoint(
    folder: Path,
    config_class: type[PreTrainedConfig],
    standalone: str,
    model_class: type[PreTrainedModel],
    what: str,
) -> tuple[PreTrainedConfig, dict[str, Tensor]]:
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


def _near_one(value: float) -> float:
    return 1.0 if abs(value - 1) < 1e-6 else value  # 0.00392156862745098 is 1/255


def resize_picture(picture: Tensor, height: int, width: int, resample: str) -> Tensor:
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

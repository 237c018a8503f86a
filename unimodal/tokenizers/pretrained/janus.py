"""Janus's two sides of a picture (arXiv 2410.13848), both of 384×384 pixels.

Pictures are drawn as 24×24 codes of 16,384 values: LlamaGen's VQGAN (arXiv 2406.06525), whose codebook vectors are
brought to length 1 before they are decoded. They are read as 24×24 features of a SigLIP tower (arXiv 2303.15343),
which an aligner of two layers brings to the width of the decoder.

Shapes: B batch, N codes or features, D width of the decoder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, FitMode, MediaReader
from unimodal.tokenizers.pretrained.base import (
    build_config,
    fill_weights,
    to_plain_config,
)
from unimodal.tokenizers.pretrained.image import (
    NetworkImageConfig,
    NetworkImageTokenizer,
    PixelScale,
    PixelSettings,
    check_pictures,
    read_image_processor,
    read_pixel_settings,
    read_vq_checkpoint,
    resize_picture,
)
from unimodal.tokenizers.rows import check_counts, decode_rows
from unimodal.tokenizers.stored import TokenizerConfig

if TYPE_CHECKING:
    from transformers import JanusModel

MIN_SIZE = 14


class JanusImageConfig(NetworkImageConfig):
    min_size: int = Field(default=MIN_SIZE, ge=1)  # pixels that the shorter side of a narrow picture keeps


class JanusTokenizerConfig(JanusImageConfig):
    family: Literal["janus"] = "janus"


class JanusTokenizer(NetworkImageTokenizer):
    """Janus's drawn pictures of 384×384 pixels: 24×24 codes of LlamaGen's 16,384-value codebook.

    ``encode``: float [B, 3, S, S] in [0, 1] → Codes [B, (S / 16)², 1] in raster order.
    """

    config_class: ClassVar[type[TokenizerConfig]] = JanusTokenizerConfig
    config: JanusTokenizerConfig
    side: int

    def __init__(self, config: JanusTokenizerConfig):
        super().__init__(config)
        from transformers.models.janus.configuration_janus import JanusVQVAEConfig
        from transformers.models.janus.modeling_janus import JanusVQVAE

        settings = build_config(JanusVQVAEConfig, config.network)
        self.network = JanusVQVAE(settings).eval()
        self.describe(config.image_size, config.image_size // settings.num_patches, settings.num_embeddings)

    @classmethod
    def from_checkpoint(cls, folder: Path) -> Self:
        from transformers import JanusConfig
        from transformers.models.janus.modeling_janus import JanusVQVAE

        network, weights = read_vq_checkpoint(folder, JanusConfig, "janus_vqgan", JanusVQVAE, "Janus")
        tokenizer = cls(
            JanusTokenizerConfig(
                network=to_plain_config(network),
                image_size=network.num_patches * 2 ** (len(network.channel_multiplier) - 1),
                **_read_picture_settings(folder),
            )
        )
        fill_weights(tokenizer.network, weights, folder)
        return tokenizer.eval()

    def fit(self, medium: Tensor, mode: FitMode = "pad") -> Tensor:
        return fit_to_square(medium, self.config)

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        check_pictures(x, self.config.image_size, self.config.image_size, "Janus")
        ids = self.network.encode(self.scale_pixels(x)).image_tokens.view(len(x), -1)  # flat over the batch
        return Codes.whole(ids, (1, self.side, self.side))

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        check_counts(codes, self.side**2)
        return self.unscale_pixels(torch.stack(decode_rows(codes, lambda ids: self.network.decode(ids[..., 0]))))


class JanusReaderConfig(JanusImageConfig):
    family: Literal["janus_reader"] = "janus_reader"


class JanusReader(PixelScale, MediaReader):
    """Janus's read pictures of 384×384 pixels: 24×24 features of a SigLIP tower.

    ``read``: float [B, 3, S, S] in [0, 1] → features [B, (S / patch)², D] in raster order.
    """

    modality: ClassVar[str] = "image"
    stored_dtype: ClassVar[torch.dtype] = torch.float32
    config_class: ClassVar[type[TokenizerConfig]] = JanusReaderConfig
    config: JanusReaderConfig

    def __init__(self, config: JanusReaderConfig):
        super().__init__(config)
        from transformers.models.janus.configuration_janus import JanusVisionConfig
        from transformers.models.janus.modeling_janus import JanusVisionAlignerMLP, JanusVisionModel

        settings = build_config(JanusVisionConfig, config.network)
        if settings.image_size != config.image_size:
            raise ValueError(f"the reader sees {settings.image_size} pixels, its image_size is {config.image_size}")
        self.vision = JanusVisionModel(settings)
        self.aligner = JanusVisionAlignerMLP(settings)
        self.num_features = (config.image_size // settings.patch_size) ** 2
        self.width = settings.projection_dim
        self.eval()

    @classmethod
    def from_model(cls, model: JanusModel, folder: Path) -> Self:
        """The reading side of a `JanusModel` that was loaded from a checkpoint's folder."""
        network = to_plain_config(model.config.vision_config)
        size = model.config.vision_config.image_size
        reader = cls(JanusReaderConfig(network=network, image_size=size, **_read_picture_settings(folder)))
        reader.vision.load_state_dict(model.vision_model.state_dict())
        reader.aligner.load_state_dict(model.aligner.state_dict())
        return reader.eval()

    def fit(self, medium: Tensor, mode: FitMode = "pad") -> Tensor:
        return fit_to_square(medium, self.config)

    @torch.inference_mode()
    def read(self, x: Tensor) -> Tensor:
        check_pictures(x, self.config.image_size, self.config.image_size, "Janus")
        return self.aligner(self.vision(self.scale_pixels(x)).last_hidden_state)


class _PictureSettings(PixelSettings):
    min_size: int


def _read_picture_settings(folder: Path) -> _PictureSettings:
    pixels, least = read_pixel_settings(folder, 0.5, 0.5), read_image_processor(folder).min_size
    return _PictureSettings(**pixels, min_size=MIN_SIZE if least is None else least)


def fit_to_square(picture: Tensor, config: JanusImageConfig) -> Tensor:
    """uint8 [3, H, W] → float [3, S, S]: the longer side to S, bars in the mean colour at the shorter ones."""
    size, (height, width) = config.image_size, picture.shape[1:]
    scale = size / max(height, width)
    sides = [min(size, max(round(side * scale), config.min_size)) for side in (height, width)]
    inner = resize_picture(picture, sides[0], sides[1], "BICUBIC")
    colour = torch.tensor([int(value * 255) for value in config.image_mean], dtype=torch.uint8)
    canvas = colour[:, None, None].repeat(1, size, size)
    top, left = (size - inner.shape[1]) // 2, (size - inner.shape[2]) // 2
    canvas[:, top : top + inner.shape[1], left : left + inner.shape[2]] = inner
    return canvas.float() / 255

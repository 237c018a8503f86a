"""Janus's tokenizer of pictures to be drawn (arXiv 2410.13848): 384×384 pixels ⇄ 24×24 codes of 16,384 values.

It is LlamaGen's VQGAN (arXiv 2406.06525). Codebook vectors are brought to length 1 before they are decoded.

Shapes: B batch, N codes.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from unimodal.tokenizers.interface import Codes, TokenizerConfig
from unimodal.tokenizers.pretrained_base import check_codes, decode_rows, fill, plain_config, reference
from unimodal.tokenizers.pretrained_image import (
    PretrainedImageConfig,
    PretrainedImageTokenizer,
    check_pictures,
    pixel_settings,
    resized,
    vq_checkpoint,
)

MIN_SIZE = 14  # pixels that the shorter side of a narrow picture keeps


class JanusTokenizerConfig(PretrainedImageConfig):
    family: Literal["janus"] = "janus"


class JanusTokenizer(PretrainedImageTokenizer):
    """``encode``: float [B, 3, S, S] in [0, 1] → Codes [B, (S / 16)², 1] in raster order."""

    config_class: ClassVar[type[TokenizerConfig]] = JanusTokenizerConfig
    config: JanusTokenizerConfig

    def __init__(self, config: JanusTokenizerConfig):
        super().__init__(config)
        from transformers.models.janus.configuration_janus import JanusVQVAEConfig
        from transformers.models.janus.modeling_janus import JanusVQVAE

        settings = reference(JanusVQVAEConfig, config.network)
        self.network = JanusVQVAE(settings).eval()
        self.side = settings.num_patches
        self.codebook_sizes = (settings.num_embeddings,)
        self.tokens_per_item = self.side**2
        self.segments = (("image", self.tokens_per_item),)
        self.block_sizes = {"image": settings.num_embeddings}
        self.columns = {"image": self.side}

    @classmethod
    def from_checkpoint(cls, folder: Path) -> Self:
        from transformers import JanusConfig
        from transformers.models.janus.modeling_janus import JanusVQVAE

        network, weights = vq_checkpoint(folder, JanusConfig, "janus_vqgan", JanusVQVAE, "Janus")
        tokenizer = cls(
            JanusTokenizerConfig(
                network=plain_config(network),
                image_size=network.num_patches * 2 ** (len(network.channel_multiplier) - 1),
                **pixel_settings(folder, 0.5, 0.5),
            )
        )
        fill(tokenizer.network, weights, folder)
        return tokenizer.eval()

    def fit(self, picture: Tensor) -> Tensor:
        """The longer side to S, bars in the mean colour at the shorter ones."""
        size, (height, width) = self.config.image_size, picture.shape[1:]
        scale = size / max(height, width)
        sides = [min(size, max(round(side * scale), MIN_SIZE)) for side in (height, width)]
        inner = resized(picture, sides[0], sides[1], "BICUBIC")
        colour = torch.tensor([int(value * 255) for value in self.config.image_mean], dtype=torch.uint8)
        fitted = colour[:, None, None].repeat(1, size, size)
        top, left = (size - inner.shape[1]) // 2, (size - inner.shape[2]) // 2
        fitted[:, top : top + inner.shape[1], left : left + inner.shape[2]] = inner
        return fitted.float() / 255

    @torch.inference_mode()
    def encode(self, x: Tensor, lengths: Tensor | None = None) -> Codes:
        check_pictures(x, self.config.image_size, self.config.image_size, "Janus")
        ids = self.network.encode(self.scaled(x)).image_tokens.view(len(x), -1, 1)  # flat over the batch
        return Codes(ids, torch.ones(ids.shape[:2], dtype=torch.bool, device=x.device), (1, self.side, self.side))

    @torch.inference_mode()
    def decode(self, codes: Codes) -> Tensor:
        check_codes(codes, self.codebook_sizes, "image")
        if codes.mask.sum(1).ne(self.tokens_per_item or 0).any():
            raise ValueError(f"a picture is {self.tokens_per_item} codes; got {codes.mask.sum(1).tolist()}")
        return self.unscaled(torch.stack(decode_rows(codes, lambda ids: self.network.decode(ids[..., 0]))))

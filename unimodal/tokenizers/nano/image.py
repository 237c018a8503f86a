"""The image tokenizer of ``nano``: a 64×64 picture ⇄ 64 codes: what it is, which known picture it looks like, and the
rest how it looks, coarse to fine.

The first ``num_semantic`` codes name the nearest prototypes, nearest first, of a frozen image trunk's features
(EfficientNet-lite0) after a linear discriminant projection that ignores the drawing style. A frozen trunk as in SEED
(arXiv 2307.08041), semantic and pixel vocabularies side by side as in DualToken (arXiv 2503.14324). They mean the
same in every style, so a language model reads what it sees, and decides what to draw before how. One more code is the
nearest of the training pictures by a principal-component thumbnail: vector quantization of whole pictures, whose code
vector gives the decoder a first guess. The other codes are finite-scalar-quantized outputs of a convolutional and
transformer encoder; one decoder reads all codes and returns the pixels.

The codes are ordered: in training the tail is replaced by a mask token (prefix policy of FlexTok, arXiv 2502.13967,
with a length drawn for every picture; One-D-Piece, arXiv 2501.10064), so any prefix decodes to a coarser picture.

Shapes: B batch, N codes, S semantic codes, M = N - S - 1 pixel codes, K quantized dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, MediaTokenizer
from unimodal.tokenizers.nano.efficientnet import EfficientNetLite0
from unimodal.tokenizers.nano.image_codebooks import LookBranch, SemanticBranch
from unimodal.tokenizers.nano.image_config import ImageTokenizerConfig
from unimodal.tokenizers.nano.image_networks import PictureDecoder, PictureEncoder
from unimodal.tokenizers.parts.quantizers import FiniteScalarQuantizer
from unimodal.tokenizers.stored import TokenizerConfig


class ImageTokenizer(MediaTokenizer):
    """nano's pictures of 64×64 pixels: 64 codes, what is shown before how it looks.

    ``encode``: float [B, 3, 64, 64] in [0, 1] → Codes [B, 64, 1].
    """

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[TokenizerConfig]] = ImageTokenizerConfig
    stored_names: ClassVar[Mapping[str, str]] = {
        "encoder.stem": "encoder_in",
        "encoder.": "encoder_",
        "decoder.semantic_": "semantic_",
        "decoder.look_": "look_",
        "decoder.pixel_in": "pixel_in",
        "decoder.dropped_code": "dropped_code",
        "decoder.": "decoder_",
    }
    config: ImageTokenizerConfig
    tokens_per_item: int

    def __init__(self, config: ImageTokenizerConfig):
        super().__init__(config)
        self.trunk = EfficientNetLite0().requires_grad_(False)
        self.semantic = SemanticBranch(config)
        self.look = LookBranch(config)
        self.quantizer = FiniteScalarQuantizer(config.levels)
        self.encoder = PictureEncoder(config, self.quantizer.num_dims)
        self.decoder = PictureDecoder(config, self.quantizer.num_dims)
        self.codebook_sizes = (self.quantizer.codebook_size,)
        self.segments = (("semantic", config.num_semantic), ("look", 1), ("image", config.num_pixel))
        self.block_sizes = {
            "semantic": config.num_prototypes, "look": config.num_looks, "image": self.quantizer.codebook_size,
        }  # fmt: skip
        self.code_levels = {"image": self.quantizer.levels}
        self.exemplar_blocks = frozenset({"look"})
        self.tokens_per_item = config.grid**2
        self.picture_size = (config.image_size, config.image_size)
        self.ordered = True

    # -- pieces used in training ------------------------------------------------------------------------------------
    def extract_features(self, x: Tensor) -> Tensor:
        """x: [B, 3, H, W] in [0, 1] → features of the frozen trunk [B, 1280]."""
        size = self.config.trunk_size
        with torch.no_grad():
            return self.trunk(nn.functional.interpolate(x, size=(size, size), mode="bilinear", antialias=True))

    def encode_pixels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: [B, 3, 64, 64] in [0, 1] → (values [B, M, K] with straight-through gradient, ids int64 [B, M])."""
        return self.quantizer.quantize(self.encoder(x))

    def encode_ids(self, x: Tensor, features: Tensor) -> Tensor:
        """x: [B, 3, 64, 64] in [0, 1] and its trunk features [B, 1280] → ids int64 [B, N]."""
        return torch.cat([self.semantic(features), self.look.find_nearest(x, 1), self.encode_pixels(x)[1]], dim=1)

    def decode_values(self, semantic: Tensor, look: Tensor, pixel: Tensor, kept: Tensor | None = None) -> Tensor:
        """semantic ids: [B, S], look ids: [B], pixel values: [B, M, K] → [B, 3, 64, 64], unclamped.

        kept: bool [B, N], False where a code is not known; None if all are.
        """
        return self.decoder(semantic, self.semantic.look_up(semantic), self.look.look_up(look), pixel, kept)

    # -- the contract -----------------------------------------------------------------------------------------------
    def code_features(self, block: str, group: int = 0) -> Tensor | None:
        """Prototypes, components of the known pictures' thumbnails, or what the quantizer turns codes into."""
        if group or block not in self.block_sizes:
            return None
        if block == "image":
            return self.quantizer.make_table()
        table = self.semantic.prototypes if block == "semantic" else self.look.table
        return table.detach().float().cpu()

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        size, grid = self.config.image_size, self.config.grid
        if x.dim() != 4 or x.shape[1] != 3 or tuple(x.shape[2:]) != (size, size):
            raise ValueError(f"the image tokenizer takes [B, 3, {size}, {size}] in [0, 1]; got {tuple(x.shape)}")
        ids = self.encode_ids(x, self.extract_features(x))
        return Codes.whole(ids, (1, grid, grid), "semantic+look+coarse_to_fine")

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        """Codes [B, n ≤ N, 1] → [B, 3, 64, 64]; a prefix of the codes gives a coarser picture."""
        ids, num, num_semantic = codes.ids[..., 0], self.tokens_per_item, self.config.num_semantic
        kept = codes.mask
        if ids.shape[1] > num or not bool(kept[:, :1].all()) or bool((kept[:, 1:] > kept[:, :-1]).any()):
            raise ValueError(f"a picture is {num} codes or a prefix of them; got {codes.counts}")
        missing = num - ids.shape[1]
        ids, kept = nn.functional.pad(ids, (0, missing)), nn.functional.pad(kept, (0, missing))
        ids = torch.where(kept, ids, torch.zeros_like(ids))
        semantic, look, pixel = ids.split([num_semantic, 1, num - num_semantic - 1], dim=1)
        return self.decode_values(semantic, look[:, 0], self.quantizer.to_values(pixel), kept).clamp(0, 1)

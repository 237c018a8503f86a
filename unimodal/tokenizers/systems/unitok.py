"""UniTok: several codebooks at one place, learned from pixels and from captions together (arXiv 2502.20321).

A ViTamin encoder, a projection by attention to a few channels, which are cut into as many parts as there are
codebooks, and the mirror of that. The mean of the projected codes is a feature of the picture in CLIP's sense; the text
tower that it is compared with in training is not part of the tokenizer.

Shapes: B batch, h/w rows and columns, N = h·w, D width of a place's codes, G codebooks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from unimodal.tokenizers.codes import Codes, Grid
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.attention_projection import AttentionProjection
from unimodal.tokenizers.parts.quantizers import ProductQuantizer, VectorQuantizer
from unimodal.tokenizers.parts.trunks.vitamin import VitaminDecoder, VitaminEncoder, VitaminSizes
from unimodal.tokenizers.rows import decode_rows, find_picture_grid, pad_media
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.authors_fields import AuthorsFields
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemTokenizer
from unimodal.tokenizers.systems.key_map import KeyMap

FACTOR = 16  # pixels of a place's side
#: widths of the stages, depth and heads of ViTamin's models
VITAMIN_SIZES = {"vitamin_base": ((128, 256, 768), 14, 12), "vitamin_large": ((160, 320, 1024), 31, 16)}


class UnitokConfig(SystemConfig):
    """codebook_size and code_width: of each of the `num_codebooks` books (their own config gives the sums)."""

    family: Literal["unitok"] = "unitok"
    image_size: int = Field(default=256, ge=16)
    widths: tuple[int, int, int] = (160, 320, 1024)
    encoder_blocks: tuple[int, int] = (2, 4)
    decoder_blocks: tuple[int, int] = (4, 2)
    depth: int = 31
    num_heads: int = 16
    expansion: float = 2.0
    num_codebooks: int = Field(default=8, ge=1)
    codebook_size: int = 4096
    code_width: int = 8
    projection: Literal["attn", "linear"] = "attn"
    commitment: float = 0.25
    entropy_weight: float = 0.0
    entropy_temperature: float = 0.01
    feature_width: int = 768


class UnitokTokenizer(SystemTokenizer):
    """Pictures ⇄ G codes for every 16×16 pixels. ``encode``: float [B, 3, H, W] in [0, 1] → Codes [B, N, G]."""

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[TokenizerConfig]] = UnitokConfig
    key_map: ClassVar[KeyMap] = KeyMap(
        rules=((r"quantizer\.parts\.(\d+)\.codebook", r"quantizer.codebooks.\1.codebook.weight"),),
        ignored=(r"quantizer\.codebooks\.\d+\.vocab_usage", r"text_encoder\..*"),
    )
    config: UnitokConfig

    def __init__(self, config: UnitokConfig):
        super().__init__(config)
        width, code_width = config.widths[2], config.num_codebooks * config.code_width
        if config.image_size % FACTOR:
            raise ValueError(f"image_size {config.image_size} is no multiple of {FACTOR}")
        if config.projection == "attn" and width % code_width:
            raise ValueError(f"{config.num_codebooks} codebooks of width {config.code_width} do not divide the "
                             f"encoder's width {width}, as a projection by attention wants")  # fmt: skip
        sizes = VitaminSizes(
            config.widths, config.encoder_blocks, config.decoder_blocks, config.depth, config.num_heads,
            config.expansion,
        )  # fmt: skip
        self.encoder, self.decoder = VitaminEncoder(sizes), VitaminDecoder(sizes)
        self.quant_proj, self.post_quant_proj = (
            (AttentionProjection(*ends, width // code_width) if config.projection == "attn" else nn.Linear(*ends))
            for ends in ((width, code_width), (code_width, width))
        )
        self.quantizer = ProductQuantizer(
            [
                VectorQuantizer(
                    config.codebook_size, config.code_width, "cosine", normalize_latents=True, normalize_codes=True,
                    commitment=config.commitment, entropy_weight=config.entropy_weight,
                    temperature=config.entropy_temperature,
                )
                for _ in range(config.num_codebooks)
            ]
        )  # fmt: skip
        self.fc_norm = nn.LayerNorm(width, 1e-6)
        self.projection = nn.Linear(width, config.feature_width)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.codebook_sizes = self.quantizer.codebook_sizes
        side = config.image_size // FACTOR
        self.segments, self.tokens_per_item = (("image", side * side),), side * side
        self.columns = {"image": side}
        self.picture_size = (config.image_size, config.image_size)

    def encode_latents(self, x: Tensor) -> tuple[Tensor, Grid]:
        """x: [B, 3, H, W] in [0, 1] → latents [B, N, D], before they are quantized, and their grid."""
        if x.dim() != 4 or x.shape[1] != 3 or any(side < 1 or side % FACTOR for side in x.shape[2:]):
            raise ValueError(f"UniTok takes pictures [B, 3, H, W], H and W multiples of {FACTOR}; got {tuple(x.shape)}")
        return self.quant_proj(self.encoder(x * 2 - 1)), (1, x.shape[2] // FACTOR, x.shape[3] // FACTOR)

    def decode_latents(self, values: Tensor, grid: tuple[int, int]) -> Tensor:
        """Quantized vectors [B, N, D] → [B, 3, H, W] in about [0, 1], not clamped."""
        return self.decoder(self.post_quant_proj(values), grid) / 2 + 0.5

    def describe(self, values: Tensor) -> Tensor:
        """Quantized vectors [B, N, D] → a feature of the picture to compare with captions by [B, F], not normalised."""
        return self.projection(self.fc_norm(self.post_quant_proj(values).mean(1)))

    def extract_features(self, x: Tensor) -> Tensor | None:
        with torch.inference_mode():
            return self.describe(self.quantizer(self.encode_latents(x)[0]).rows)

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        latents, grid = self.encode_latents(x)
        return Codes.whole(self.quantizer(latents).ids, grid)

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        def decode(ids: Tensor) -> Tensor:
            return self.decode_latents(self.quantizer.look_up(ids), find_picture_grid(ids.shape[1], codes.grid))

        return pad_media(decode_rows(codes, decode)).clamp(0, 1)

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """features: `picture` [B, 1, F], what the authors compare with captions."""
        latents, grid = self.encode_latents(x)
        made = self.quantizer(latents, generator=generator)
        features = {"picture": self.describe(made.values).unsqueeze(1)}
        decoded = self.decode_latents(made.values, (grid[1], grid[2]))
        return Reconstruction(decoded, made.loss, made.ids, made.numbers, features)

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> UnitokConfig:
        """Their arguments, as `args` of the checkpoint holds them: sizes and widths of codebooks are sums over all."""
        own = AuthorsFields(fields).open("args")
        model = own.take_text("model", "vitamin_large")
        if model not in VITAMIN_SIZES or own.take_integer("num_query", 0):
            raise ValueError(f"a UniTok of {model} with queries or of another trunk than "
                             f"{', '.join(VITAMIN_SIZES)} is not read")  # fmt: skip
        widths, depth, heads = VITAMIN_SIZES[model]
        books = own.take_integer("num_codebooks", 8)
        return UnitokConfig.model_validate(
            {
                "image_size": own.take_integer("img_size", 256),
                "widths": own.take_integers("widths", widths),
                "encoder_blocks": own.take_integers("encoder_conv_depths", (2, 4)),
                "decoder_blocks": own.take_integers("decoder_conv_depths", (4, 2)),
                "depth": own.take_integer("vit_depth", depth),
                "num_heads": own.take_integer("vit_heads", heads),
                "expansion": own.take_number("vit_mlp_ratio", 2.0),
                "num_codebooks": books,
                "codebook_size": own.take_integer("vocab_size", 32768) // books,
                "code_width": own.take_integer("vocab_width", 64) // books,
                "projection": own.take_text("quant_proj", "attn"),
                "commitment": own.take_number("vq_beta", 0.25),
                "entropy_weight": own.take_number("le", 0.0),
                "entropy_temperature": own.take_number("e_temp", 0.01),
                "feature_width": own.take_integer("embed_dim", 768),
            }
        )

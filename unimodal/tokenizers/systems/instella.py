"""Instella-T2I's tokenizer (arXiv 2506.21022): pictures up to 1024×1024 as 128 vectors of 64 bits.

Queries stand before the patches in a language model's blocks; a convolution halves the map half-way through the
encoder and doubles it half-way through the decoder. Each query becomes bits that are drawn in training, and each bit
has a row of its own, of which the decoder reads the sum. 64 bits are four codes of 16 for a language model.

The network is that of AMD-AGI/Instella-T2I @5b1a25d, bae/, with whose modules it was compared; its training is in no
released code.

Shapes: B batch, N queries, K bits, D width of the encoder, h/w rows and columns of patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.quantizers import BernoulliQuantizer
from unimodal.tokenizers.parts.trunks.llama_blocks import (
    EPS,
    DoublingLayer,
    HalfRotation,
    HalvingLayer,
    LlamaBlock,
    make_rotation,
)
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.authors_fields import AuthorsFields
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemTokenizer
from unimodal.tokenizers.systems.key_map import KeyMap


class InstellaPart(BaseModel):
    """One of the two transformers. resized_after: the layers behind which the map is halved (encoder) or doubled."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    resized_after: tuple[int, ...] = (7,)

    def find_width(self, head_width: int) -> int:
        """D"""
        return self.num_heads * head_width


class InstellaConfig(SystemConfig):
    """bits: of each code at a position. axes: how many dimensions of a head turn with a query's place, a row and a
    column. span: how many patches the positions of a side are spread over, whatever its size (1024 pixels of 16);
    None counts patches. temperature: of the drawn bits. sharpness: the weight of the loss that makes them sure."""

    family: Literal["instella"] = "instella"
    image_size: int = Field(default=1024, ge=1)
    patch_size: int = Field(default=16, ge=1)
    num_tokens: int = Field(default=128, ge=1)
    bits: tuple[int, ...] = (16, 16, 16, 16)
    head_width: int = Field(default=64, ge=2)
    axes: tuple[int, int, int] = (8, 28, 28)
    span: int | None = Field(default=64, ge=2)
    encoder: InstellaPart = InstellaPart(num_layers=12, num_heads=12)
    decoder: InstellaPart = InstellaPart(num_layers=16, num_heads=16)
    temperature: float = Field(default=0.1, gt=0)
    sharpness: float = Field(default=1.0, ge=0)

    @property
    def grid(self) -> int:
        """Patches of a side."""
        return self.image_size // self.patch_size

    @model_validator(mode="after")
    def check_fit(self) -> Self:
        """ValueError for pictures that are no whole patches after every halving, and axes that do not fill a head."""
        for name, part in (("encoder", self.encoder), ("decoder", self.decoder)):
            unit = self.patch_size * 2 ** len(part.resized_after)
            if self.image_size % unit or self.image_size < 2 * unit:
                raise ValueError(f"image_size {self.image_size} must be 2 or more whole cells of {unit} ({name})")
            if part.resized_after and max(part.resized_after) >= part.num_layers:
                raise ValueError(f"{name}: resized_after {list(part.resized_after)} of {part.num_layers} layers")
        if sum(self.axes) != self.head_width or any(size % 2 for size in self.axes):
            raise ValueError(f"axes {list(self.axes)} must be even and fill a head of {self.head_width}")
        return self


def run_blocks(
    x: Tensor, num_queries: int, side: int, blocks: nn.ModuleList, part: InstellaPart, layers: nn.ModuleList,
    factor: float, config: InstellaConfig,
) -> tuple[Tensor, int]:  # fmt: skip
    """Blocks over queries and a map, x: [B, N + side², D], whose map `layers` resize by `factor` → (the same with the
    map at its last size, that side)."""

    def turn(span: float | None) -> HalfRotation:
        return make_rotation(num_queries, (side, side), span, config.axes, x.device)

    resized = list(part.resized_after)
    span: float | None = config.span
    if span is not None and factor > 1:  # the decoder begins at the smallest map
        span = span // (2 * len(resized)) if resized else span
    rotation, done = turn(span), 0
    for index, block in enumerate(blocks):
        x = block(x, rotation)
        if index in resized:
            queries, cells = x.split([num_queries, side * side], dim=1)
            grown = layers[done](cells.transpose(1, 2).unflatten(2, (side, side)))
            x, side, done = torch.cat([queries, grown.flatten(2).transpose(1, 2)], 1), grown.shape[-1], done + 1
            span = None if span is None else span * factor // 1
            rotation = turn(span)
    return x, side


class InstellaEncoder(nn.Module):
    """Pictures [B, 3, S, S] in [-1, 1] → vectors [B, N, D]."""

    def __init__(self, config: InstellaConfig):
        super().__init__()
        self.config, width = config, config.encoder.find_width(config.head_width)
        self.patch_embedder = nn.Conv2d(3, width, config.patch_size, config.patch_size)
        self.latent_tokens = nn.Parameter(torch.randn(1, config.num_tokens, width) * 0.02)
        self.transformer_blocks = nn.ModuleList(
            LlamaBlock(width, config.encoder.num_heads) for _ in range(config.encoder.num_layers)
        )
        self.down_layers = nn.ModuleList(HalvingLayer(width) for _ in config.encoder.resized_after)
        self.norm_out, self.proj_out = nn.RMSNorm(width, EPS), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        cells = self.patch_embedder(x).flatten(2).transpose(1, 2)
        num = self.config.num_tokens
        tokens = torch.cat([self.latent_tokens.expand(len(x), -1, -1), cells], 1)
        tokens, _ = run_blocks(
            tokens, num, self.config.grid, self.transformer_blocks, self.config.encoder, self.down_layers, 0.5,
            self.config,
        )  # fmt: skip
        return self.proj_out(self.norm_out(tokens[:, :num]))


class InstellaDecoder(nn.Module):
    """Vectors [B, N, D] of the encoder's width → the map [B, side², D'] that pixels are read of."""

    def __init__(self, config: InstellaConfig):
        super().__init__()
        self.config, width = config, config.decoder.find_width(config.head_width)
        inputs = config.encoder.find_width(config.head_width)
        self.input_layer = nn.Sequential(nn.RMSNorm(inputs, EPS), nn.Linear(inputs, width))
        self.mask_tokens = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.transformer_blocks = nn.ModuleList(
            LlamaBlock(width, config.decoder.num_heads) for _ in range(config.decoder.num_layers)
        )
        self.up_layers = nn.ModuleList(DoublingLayer(width) for _ in config.decoder.resized_after)
        self.norm_out = nn.RMSNorm(width, EPS)

    def forward(self, vectors: Tensor) -> Tensor:
        queries = self.input_layer(vectors)
        side = self.config.grid // 2 ** len(self.config.decoder.resized_after)
        tokens = torch.cat([queries, self.mask_tokens.expand(len(queries), side * side, -1)], 1)
        tokens, _ = run_blocks(
            tokens, queries.shape[1], side, self.transformer_blocks, self.config.decoder, self.up_layers, 2.0,
            self.config,
        )  # fmt: skip
        return self.norm_out(tokens[:, queries.shape[1] :])


class InstellaTokenizer(SystemTokenizer):
    """Pictures ⇄ N positions of as many codes as `bits` has. ``encode``: float [B, 3, S, S] in [0, 1]."""

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[TokenizerConfig]] = InstellaConfig
    key_map: ClassVar[KeyMap] = KeyMap(
        rules=((r"quantizer\.projection\.(.*)", r"quantizer.proj.0.\1"), (r"quantizer\.codebook", "quantizer.embed")),
        ignored=(r"decoder\.repa_proj\..*",),
    )
    config: InstellaConfig

    def __init__(self, config: InstellaConfig):
        super().__init__(config)
        self.encoder, self.decoder = InstellaEncoder(config), InstellaDecoder(config)
        self.to_pixel = nn.Linear(config.decoder.find_width(config.head_width), 3 * config.patch_size**2)
        self.quantizer = BernoulliQuantizer(
            config.bits, config.encoder.find_width(config.head_width), config.temperature, config.sharpness
        )
        self.codebook_sizes = self.quantizer.codebook_sizes
        self.segments = ((self.modality, config.num_tokens),)
        self.tokens_per_item = config.num_tokens
        self.picture_size = (config.image_size, config.image_size)

    def encode_tokens(self, x: Tensor) -> Tensor:
        """x: float [B, 3, S, S] → vectors before quantization [B, N, D]. ValueError for another size."""
        size = self.config.image_size
        if x.dim() != 4 or tuple(x.shape[1:]) != (3, size, size):
            raise ValueError(f"instella takes pictures [B, 3, {size}, {size}]; got {tuple(x.shape)}")
        return self.encoder(x * 2 - 1)

    def decode_tokens(self, vectors: Tensor) -> Tensor:
        """Sums of the rows of bits [B, N, D] → pictures [B, 3, S, S] in about [0, 1], not clamped."""
        side, size = self.config.grid, self.config.patch_size
        cells = self.to_pixel(self.decoder(vectors)).unflatten(2, (size, size, 3)).unflatten(1, (side, side))
        return cells.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3) / 2 + 0.5

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        quantized = self.quantizer(self.encode_tokens(x), generator=generator)
        decoded = self.decode_tokens(quantized.values)
        return Reconstruction(decoded, quantized.loss, quantized.ids, quantized.numbers, {"tokens": quantized.values})

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        return Codes.whole(self.quantizer(self.encode_tokens(x)).ids, order="queries")

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        if any(count != self.config.num_tokens for count in codes.counts):
            raise ValueError(f"a picture of instella is {self.config.num_tokens} positions; got {codes.counts}")
        return self.decode_tokens(self.quantizer.look_up(codes.ids)).clamp(0, 1)

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> InstellaConfig:
        """The fields of their configs/bae_config.py; `bae_scale`, a picture's side, is that of their generators."""
        own = AuthorsFields(fields)
        head, patch, bits = (
            own.take_integer("encoder_head_dim", 64),
            own.take_integer("patch_size", 16),
            own.take_integer("codebook_size", 64),
        )
        if head != own.take_integer("decoder_head_dim", 64) or own.take_integer("in_channels", 3) != 3:
            raise ValueError("an Instella tokenizer with heads of two widths, or without colours, is not read")
        axes = own.take_integers("axes_dims_rope", (8, 28, 28))
        if len(axes) != 3:
            raise ValueError(f"axes_dims_rope has {len(axes)} axes; 3 are read")
        scale = own.take_integer("bae_scale", 1024)
        return InstellaConfig(
            image_size=scale,
            patch_size=patch,
            num_tokens=own.take_integer("num_latent_tkns", 128),
            bits=(*(16,) * (bits // 16), *((bits % 16,) if bits % 16 else ())),
            head_width=head,
            axes=(axes[0], axes[1], axes[2]),
            span=scale // patch,
            encoder=InstellaPart(
                num_layers=own.take_integer("encoder_layers", 12),
                num_heads=own.take_integer("encoder_num_heads", 12),
                resized_after=own.take_integers("downsample_idx", ()),
            ),
            decoder=InstellaPart(
                num_layers=own.take_integer("decoder_layers", 16),
                num_heads=own.take_integer("decoder_num_heads", 16),
                resized_after=own.take_integers("upsample_idx", ()),
            ),
            temperature=own.take_number("train_temp", 0.1),
        )

"""ViT-VQGAN (arXiv 2110.04627): a transformer over patches on both sides of one code a patch of 8×8 pixels.

SeiT and SeiT++ keep pictures as these codes alone (1,024 of 8,192) and train on them: `parts.heads.labels` classifies
them, `parts.code_augmentation` changes them. The network is that of thuanz123/enhancing-transformers @e1c185d, with
whose modules it was compared.

Shapes: B batch, N patches in raster order, D width, T width of a code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.mixers import Mixer, make_mixer_block
from unimodal.tokenizers.parts.positions import make_mae_positions
from unimodal.tokenizers.parts.quantizers import VectorQuantizer
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.authors_fields import AuthorsFields
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemTokenizer
from unimodal.tokenizers.systems.key_map import KeyMap

HEAD = 64  # numbers of an attention head, whatever the width


class VitVqPart(BaseModel):
    """The encoder or the decoder. inner: width of its feed-forward layers."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    width: int = Field(ge=4, multiple_of=4)
    num_layers: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    inner: int = Field(ge=1)


class VitVqConfig(SystemConfig):
    """The settings of the released small size by default. mixer: what mixes the patches, in blocks of its own; heads
    are those of attention and of PoNet."""

    family: Literal["vit_vq"] = "vit_vq"
    mixer: Mixer = "attention"
    image_size: int = Field(default=256, ge=1)
    patch_size: int = Field(default=8, ge=1)
    codebook_size: int = Field(default=8192, ge=2)
    token_width: int = Field(default=32, ge=1)
    commitment: float = Field(default=0.25, ge=0)
    encoder: VitVqPart = VitVqPart(width=512, num_layers=8, num_heads=8, inner=2048)
    decoder: VitVqPart = VitVqPart(width=512, num_layers=8, num_heads=8, inner=2048)

    @model_validator(mode="after")
    def check_fit(self) -> Self:
        """ValueError for patches that do not fill the picture."""
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not whole patches of patch_size {self.patch_size}")
        return self

    @property
    def grid(self) -> int:
        """Patches of a side."""
        return self.image_size // self.patch_size


class VitVqBlock(nn.Module):
    """Attention and a feed-forward layer with a tanh, each after a norm, residual: [B, N, D] → [B, N, D]."""

    def __init__(self, part: VitVqPart):
        super().__init__()
        self.num_heads, inner = part.num_heads, part.num_heads * HEAD
        self.norm_attention, self.norm_mlp = nn.LayerNorm(part.width), nn.LayerNorm(part.width)
        self.to_qkv, self.to_out = nn.Linear(part.width, 3 * inner, bias=False), nn.Linear(inner, part.width)
        self.up, self.down = nn.Linear(part.width, part.inner), nn.Linear(part.inner, part.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            each.unflatten(-1, (self.num_heads, HEAD)).transpose(1, 2)
            for each in self.to_qkv(self.norm_attention(x)).chunk(3, dim=-1)
        )
        x = x + self.to_out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(self.up(self.norm_mlp(x)).tanh())


class VitVqBlocks(nn.Module):
    """Positions that are computed, blocks and a last norm: [B, N, D] → [B, N, D]."""

    def __init__(self, part: VitVqPart, side: int, mixer: Mixer = "attention"):
        super().__init__()
        self.positions = nn.Parameter(make_mae_positions(side, part.width)[None], requires_grad=False)
        self.blocks = nn.ModuleList(
            VitVqBlock(part)
            if mixer == "attention"
            else make_mixer_block(mixer, part.width, part.num_heads, part.inner, (side, side))
            for _ in range(part.num_layers)
        )
        self.norm = nn.LayerNorm(part.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def _name_side(ours: str, theirs: str, positions: str) -> tuple[tuple[str, str], ...]:
    """The rules of one side's names."""
    layer, their_layer = rf"{ours}\.blocks\.(\d+)\.", rf"{theirs}.transformer.layers.\1."
    return (
        (rf"{ours}\.positions", f"{theirs}.{positions}"),
        (layer + r"norm_attention\.(.*)", their_layer + r"0.norm.\2"),
        (layer + r"norm_mlp\.(.*)", their_layer + r"1.norm.\2"),
        (layer + r"(to_qkv|to_out)\.(.*)", their_layer + r"0.fn.\2.\3"),
        (layer + r"up\.(.*)", their_layer + r"1.fn.net.0.\2"),
        (layer + r"down\.(.*)", their_layer + r"1.fn.net.2.\2"),
        (rf"{ours}\.norm\.(.*)", rf"{theirs}.transformer.norm.\1"),
    )


class VitVqTokenizer(SystemTokenizer):
    """Pictures float [B, 3, S, S] in [0, 1] ⇄ Codes [B, N, 1] in raster order."""

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[TokenizerConfig]] = VitVqConfig
    key_map: ClassVar[KeyMap] = KeyMap(
        rules=(
            (r"project\.(.*)", r"encoder.to_patch_embedding.0.\1"),
            *_name_side("encoder", "encoder", "en_pos_embedding"),
            *_name_side("decoder", "decoder", "de_pos_embedding"),
            (r"to_pixel\.(.*)", r"decoder.to_pixel.1.\1"),
            (r"quantizer\.codebook", "quantizer.embedding.weight"),
        ),
        ignored=(r"loss\..*",),
    )
    config: VitVqConfig

    def __init__(self, config: VitVqConfig):
        super().__init__(config)
        size = config.patch_size
        self.project = nn.Conv2d(3, config.encoder.width, size, stride=size)
        self.encoder, self.decoder = (
            VitVqBlocks(part, config.grid, config.mixer) for part in (config.encoder, config.decoder)
        )
        self.pre_quant = nn.Linear(config.encoder.width, config.token_width)
        self.quantizer = VectorQuantizer(
            config.codebook_size, config.token_width, "euclidean", True, True, commitment=config.commitment
        )
        self.post_quant = nn.Linear(config.token_width, config.decoder.width)
        self.to_pixel = nn.ConvTranspose2d(config.decoder.width, 3, size, stride=size)
        self.apply(init_weights)
        nn.init.normal_(self.quantizer.codebook)
        self.codebook_sizes, self.tokens_per_item = self.quantizer.codebook_sizes, config.grid**2
        self.segments = ((self.modality, self.tokens_per_item),)
        self.picture_size = (config.image_size, config.image_size)

    def encode_tokens(self, x: Tensor) -> Tensor:
        """x: float [B, 3, S, S] → vectors before quantization [B, N, T]. ValueError for another size."""
        size = self.config.image_size
        if x.dim() != 4 or tuple(x.shape[1:]) != (3, size, size):
            raise ValueError(f"vit_vq takes pictures [B, 3, {size}, {size}]; got {tuple(x.shape)}")
        return self.pre_quant(self.encoder(self.project(x).flatten(2).transpose(1, 2)))

    def decode_tokens(self, vectors: Tensor) -> Tensor:
        """Codes' vectors [B, N, T] → pictures [B, 3, S, S], not clamped."""
        maps = self.decoder(self.post_quant(vectors)).transpose(1, 2)
        return self.to_pixel(maps.unflatten(2, (self.config.grid, self.config.grid)))

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        quantized = self.quantizer(self.encode_tokens(x))
        decoded = self.decode_tokens(quantized.values)
        return Reconstruction(decoded, quantized.loss, quantized.ids, quantized.numbers, {"tokens": quantized.values})

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        side = self.config.grid
        return Codes.whole(self.quantizer(self.encode_tokens(x)).ids, (1, side, side))

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        if any(count != self.tokens_per_item for count in codes.counts):
            raise ValueError(f"a picture of vit_vq is {self.tokens_per_item} codes; got {codes.counts}")
        return self.decode_tokens(self.quantizer.look_up(codes.ids)).clamp(0, 1)

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> VitVqConfig:
        """Their configs/imagenet_vitvq_….yaml."""
        own = AuthorsFields(fields).open("model", "params")
        book = own.open("quantizer")

        def read_part(name: str) -> VitVqPart:
            part = own.open(name)
            return VitVqPart(
                width=part.take_integer("dim", 512),
                num_layers=part.take_integer("depth", 8),
                num_heads=part.take_integer("heads", 8),
                inner=part.take_integer("mlp_dim", 2048),
            )

        return VitVqConfig(
            image_size=own.take_integer("image_size", 256),
            patch_size=own.take_integer("patch_size", 8),
            codebook_size=book.take_integer("n_embed", 8192),
            token_width=book.take_integer("embed_dim", 32),
            commitment=book.take_number("beta", 0.25),
            encoder=read_part("encoder"),
            decoder=read_part("decoder"),
        )


def init_weights(module: nn.Module) -> None:
    """Xavier's start, as its authors' code has it."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(module.weight.data.view(module.weight.shape[0], -1))

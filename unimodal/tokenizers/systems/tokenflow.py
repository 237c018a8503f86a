"""TokenFlow: one index for what a place means and how it looks (arXiv 2412.03069).

A SigLIP tower and a convolutional encoder read the picture; each place of the map is a meaning and a look side by side,
quantized scale by scale with two tables that share their index. A small transformer turns the meaning's half back into
features, a convolutional decoder the look's half into pixels.

Only the SigLIP teacher is here; CLIP-B and ViTamin, the other two, need towers of their own. In training the tower is
frozen, and what the meaning is decoded to is compared with its features; the authors tune it beside a frozen copy.

Shapes: B batch, h/w rows and columns of the map, N = h·w, D code width, M codes of all scales, K feature width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, interpolate

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.quantizers import MultiScaleQuantizer, SharedIndexQuantizer
from unimodal.tokenizers.parts.trunks.beit import BeitBlock
from unimodal.tokenizers.parts.trunks.blocks import make_tanh_pair
from unimodal.tokenizers.parts.trunks.vqgan import ConvDecoder, ConvEncoder, ConvSettings
from unimodal.tokenizers.rows import decode_rows
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.authors_fields import AuthorsFields
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemTokenizer
from unimodal.tokenizers.systems.conv_names import list_conv_rules
from unimodal.tokenizers.systems.key_map import KeyMap

FACTOR = 16  # pixels of a place's side, for the convolutional half
SCALES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 22, 27)


class TokenflowConfig(SystemConfig):
    """Sizes of the tower (`tower_…`), of the transformer that decodes meaning (`meaning_…`) and of the convolutional
    half. scale_drop: probability that an item leaves one scale out in training; the authors draw it once a batch."""

    family: Literal["tokenflow"] = "tokenflow"
    image_size: int = Field(default=384, ge=4)
    scales: tuple[int, ...] = SCALES
    codebook_size: int = 32768
    meaning_dims: int = 32
    look_dims: int = 8
    tower_width: int = 1152
    tower_layers: int = 27
    tower_heads: int = 16
    tower_inner: int = 4304
    tower_patch: int = 14
    meaning_depth: int = 3
    meaning_heads: int = 12
    meaning_width: int = 1152
    conv_width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    latent_width: int = 256
    num_norm_groups: int = 32
    decoder_conv_width: int | None = None
    decoder_blocks: int = 2
    commitment: float = 1.0
    entropy_weight: float = 0.0
    scale_drop: float = Field(default=0.1, ge=0, le=1)
    meaning_weight: float = Field(default=1.0, ge=0)

    def list_conv_settings(self) -> tuple[ConvSettings, ConvSettings]:
        """Of the encoder and of the decoder."""
        last = len(self.multipliers) - 1
        encoder = ConvSettings(
            width=self.conv_width, multipliers=self.multipliers, attention_levels=(last,),
            latent_width=self.latent_width, num_norm_groups=self.num_norm_groups,
        )  # fmt: skip
        width = self.conv_width if self.decoder_conv_width is None else self.decoder_conv_width
        return encoder, encoder.model_copy(update={"width": width, "num_blocks": self.decoder_blocks})


class MeaningDecoder(nn.Module):
    """A map of codes' meanings [B, D, h, w] → features [B, h·w, width]."""

    def __init__(self, dims: int, side: int, config: TokenflowConfig):
        super().__init__()
        width = config.meaning_width
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(dims, width, 1)})
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, side * side + 1, width) * 0.02)
        self.blocks = nn.ModuleList(
            BeitBlock(width, config.meaning_heads, 4 * width) for _ in range(config.meaning_depth)
        )
        self.fc_norm = nn.LayerNorm(width, 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        h = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1) + self.pos_embed
        for block in self.blocks:
            h = block(h)
        return self.fc_norm(h[:, 1:])


class SiglipScaling(nn.Module):
    """Pixels in [-1, 1] → as SigLIP takes them, by way of [0, 1]."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.full((1, 3, 1, 1), 0.5))
        self.register_buffer("scale", torch.full((1, 3, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return (((x + 1) * 127.5).clamp(0, 255) / 255 - self.shift) / self.scale


class TokenflowTokenizer(SystemTokenizer):
    """Pictures of one size ⇄ the codes of all scales. Those of the first whole scales decode to a coarser picture.

    ``encode``: float [B, 3, S, S] in [0, 1] → Codes [B, M, 1]. `decode_meaning` gives the features of codes.
    """

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[TokenizerConfig]] = TokenflowConfig
    config: TokenflowConfig

    def __init__(self, config: TokenflowConfig):
        super().__init__(config)
        from transformers import SiglipVisionConfig, SiglipVisionModel

        side = config.scales[-1]
        if config.image_size // config.tower_patch != side:
            raise ValueError(
                f"a tower of patch {config.tower_patch} gives {config.image_size // config.tower_patch} places a side "
                f"at image_size {config.image_size}, and the last scale has {side}; make them equal"
            )
        tower = SiglipVisionConfig(
            hidden_size=config.tower_width, intermediate_size=config.tower_inner,
            num_hidden_layers=config.tower_layers, num_attention_heads=config.tower_heads,
            image_size=config.image_size, patch_size=config.tower_patch,
        )  # fmt: skip
        self.tower: nn.Module = SiglipVisionModel(tower).requires_grad_(False)
        encoder, decoder = config.list_conv_settings()
        if encoder.factor != FACTOR:
            raise ValueError(f"TokenFlow's convolutions halve a picture four times; give five multipliers, not "
                             f"{len(config.multipliers)}")  # fmt: skip
        self.scaling_layer = SiglipScaling()
        self.encoder, self.decoder = ConvEncoder(encoder), ConvDecoder(decoder)
        self.quant_conv = nn.Conv2d(config.latent_width, config.look_dims, 1)
        self.post_quant_conv = nn.Conv2d(config.look_dims, config.latent_width, 1)
        self.encode_task_layer = make_tanh_pair(config.tower_width, config.tower_width, config.meaning_dims)
        self.meaning_decoder = MeaningDecoder(config.meaning_dims, side, config)
        self.decode_task_layer = make_tanh_pair(config.meaning_width, config.meaning_width, config.tower_width)
        book = SharedIndexQuantizer(
            config.codebook_size, (config.meaning_dims, config.look_dims), commitment=config.commitment,
            entropy_weight=config.entropy_weight,
        )  # fmt: skip
        self.quantizer = MultiScaleQuantizer(book, config.scales, num_phis=0, loss_of="scales", skip=config.scale_drop)
        self.codebook_sizes = (config.codebook_size,)
        count = sum(scale**2 for scale in config.scales)
        self.segments, self.tokens_per_item = (("image", count),), count
        self.picture_size = (config.image_size, config.image_size)

    # ---- the two halves

    def read_meaning(self, x: Tensor) -> Tensor:
        """x: [B, 3, S, S] in [-1, 1] → the tower's features before its last layer [B, N, K]."""
        return self.tower(self.scaling_layer(x), output_hidden_states=True).hidden_states[-2]

    def encode_latents(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: [B, 3, S, S] in [0, 1] → latents [B, N, D], the meaning first, and the tower's features [B, N, K]."""
        size = self.config.image_size
        if x.dim() != 4 or tuple(x.shape[1:]) != (3, size, size):
            raise ValueError(f"this TokenFlow takes pictures [B, 3, {size}, {size}]; got {tuple(x.shape)}")
        x = x * 2 - 1
        with torch.no_grad():
            features = self.read_meaning(x)
        meaning = self.encode_task_layer(features)
        wanted = FACTOR * self.config.scales[-1]
        looks = self.quant_conv(self.encoder(interpolate(x, (wanted, wanted), mode="bicubic")))
        return torch.cat([meaning, looks.flatten(2).transpose(1, 2)], dim=-1), features

    def split_map(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Quantized vectors [B, N, D] → maps of meaning and of looks, [B, d, h, w]."""
        side = self.config.scales[-1]
        cells = values.transpose(1, 2).unflatten(2, (side, side))
        meaning, looks = cells.split((self.config.meaning_dims, self.config.look_dims), dim=1)
        return meaning, looks

    def decode_latents(self, values: Tensor) -> Tensor:
        """Quantized vectors [B, N, D] → [B, 3, S, S] in about [0, 1], not clamped."""
        drawn = self.decoder(self.post_quant_conv(self.split_map(values)[1]))
        size = self.config.image_size
        return interpolate(drawn, (size, size), mode="bicubic") / 2 + 0.5

    def decode_meaning(self, values: Tensor) -> Tensor:
        """Quantized vectors [B, N, D] → the features that they stand for [B, N, K]."""
        return self.decode_task_layer(self.meaning_decoder(self.split_map(values)[0]))

    # ---- the contract

    def extract_features(self, x: Tensor) -> Tensor | None:
        """The mean of the tower's features, [B, K]."""
        with torch.inference_mode():
            return self.read_meaning(x * 2 - 1).mean(1)

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        return Codes.whole(self.quantizer(self.encode_latents(x)[0]).ids, order="scales")

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        rows = decode_rows(codes, lambda ids: self.decode_latents(self.quantizer.look_up(ids)))
        return torch.stack(rows).clamp(0, 1)

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """The loss holds 1 − cosine of the decoded meaning and the tower's features, `meaning_weight` times."""
        z, features = self.encode_latents(x)
        made = self.quantizer(z, generator=generator)
        meaning = self.decode_meaning(made.values)
        apart = 1 - cosine_similarity(meaning, features, dim=-1).mean()
        loss = made.loss + self.config.meaning_weight * apart
        numbers = {**made.numbers, "meaning_distance": float(apart.detach())}
        return Reconstruction(self.decode_latents(made.values), loss, made.ids, numbers, {"meaning": meaning})

    # ---- the authors' files

    @classmethod
    def find_key_map(cls, config: SystemConfig) -> KeyMap:
        assert isinstance(config, TokenflowConfig)
        return KeyMap(
            rules=(
                *list_conv_rules(config.list_conv_settings()[0], "llamagen"),
                (r"tower\.(?:vision_model\.)?(.*)", r"encoder_vqkd.vision_model.\1"),
                (r"meaning_decoder\.(.*)", r"decoder_vqkd.\1"),
                (r"quantizer\.book\.codebooks\.0", "quantize.embedding_vqkd.weight"),
                (r"quantizer\.book\.codebooks\.1", "quantize.embedding_vqgan.weight"),
            ),
            ignored=(r"quantize\.codebook_used",),
        )

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> TokenflowConfig:
        """Their model arguments. ValueError for another teacher than SigLIP."""
        own = AuthorsFields(fields)
        teacher = own.take_text("teacher", "siglip_384")
        if teacher != "siglip_384":
            raise ValueError(f"a TokenFlow with teacher {teacher} is not read; siglip_384 is")
        tower, meaning = own.open("siglip"), own.open("decoder_vqkd")
        published = TokenflowConfig()
        enhanced = own.take_flag("enhanced_decoder", False)
        return TokenflowConfig(
            image_size=tower.take_integer("image_size", published.image_size),
            scales=own.take_integers("scales", published.scales),
            codebook_size=own.take_integer("codebook_size", published.codebook_size),
            meaning_dims=own.take_integer("semantic_code_dim", published.meaning_dims),
            look_dims=own.take_integer("codebook_embed_dim", published.look_dims),
            tower_width=tower.take_integer("hidden_size", published.tower_width),
            tower_layers=tower.take_integer("num_hidden_layers", published.tower_layers),
            tower_heads=tower.take_integer("num_attention_heads", published.tower_heads),
            tower_inner=tower.take_integer("intermediate_size", published.tower_inner),
            tower_patch=tower.take_integer("patch_size", published.tower_patch),
            meaning_depth=meaning.take_integer("depth", published.meaning_depth),
            meaning_heads=meaning.take_integer("num_heads", published.meaning_heads),
            meaning_width=meaning.take_integer("embed_dim", published.meaning_width),
            conv_width=own.take_integer("ch", published.conv_width),
            multipliers=own.take_integers("encoder_ch_mult", published.multipliers),
            latent_width=own.take_integer("z_channels", published.latent_width),
            num_norm_groups=own.take_integer("group_norm_groups", published.num_norm_groups),
            decoder_conv_width=256 if enhanced else None,
            decoder_blocks=4 if enhanced else 2,
            commitment=own.take_number("commit_loss_beta", published.commitment),
            entropy_weight=own.take_number("entropy_loss_ratio", published.entropy_weight),
        )

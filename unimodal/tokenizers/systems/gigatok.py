"""GigaTok (arXiv 2504.08736): convolutions to a map, a transformer to tokens, a codebook, and the same way back.

The codes of one form are a sequence whose queries start as averages of 1, 1, 2, 4, … cells of the map; those of the
other are a grid. Both trunks scale on their own. The decoder's convolutions read their adaptive norm from the map that
the second transformer gives. Training adds the distance between that map and the encoder's, and aligns features of the
third layer with a frozen network's (`Reconstruction.features["align"]`).

Shapes: B batch, N codes, D quantized dimensions, Z channels of the map, h and w its sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, JsonValue
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, mse_loss

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.quantizers import make_quantizer
from unimodal.tokenizers.parts.trunks.blocks import TransformerSize
from unimodal.tokenizers.parts.trunks.map_tokens import MapToTokens, TokenForm, TokensToMap
from unimodal.tokenizers.parts.trunks.vqgan import ConvDecoder, ConvEncoder
from unimodal.tokenizers.rows import check_counts
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.authors_fields import AuthorsFields
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemTokenizer
from unimodal.tokenizers.systems.conv_names import list_conv_rules
from unimodal.tokenizers.systems.conv_pictures import ConvPictureConfig
from unimodal.tokenizers.systems.key_map import KeyMap

#: name of a size → width, layers and heads, as the authors' `blocks.py` has them
SIZES = {
    "tiny": (256, 4, 4),
    "small": (512, 6, 8),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "xl": (1280, 36, 20),
    "xxl": (1536, 48, 24),
    "xxxl": (2560, 48, 40),
}


class GigatokConfig(ConvPictureConfig):
    """The settings of the convolutions have GigaTok's defaults here. form: whether the codes are a sequence of
    `num_tokens` or a grid ("grid_twice": of layers that attend twice). encoder and decoder: the two transformers.
    map_weight and map_distance: of the distance between the decoder's map and the encoder's in training. direct_weight:
    of the squared error of the encoder's map when it is decoded without tokens between, which the authors train with at
    first. align_layer: see `TokensToMap`.
    """

    family: Literal["gigatok"] = "gigatok"
    middle_attention: bool = False
    upsampling: Literal["nearest", "shuffle"] = "shuffle"
    adaptive_norm: bool = True
    form: TokenForm = "tokens"
    num_tokens: int = Field(default=256, ge=1)
    encoder: TransformerSize
    decoder: TransformerSize
    quantizer: dict[str, JsonValue]
    map_weight: float = Field(default=1.0, ge=0)
    map_distance: Literal["squared", "cosine"] = "squared"
    direct_weight: float = Field(default=0.0, ge=0)
    align_layer: int | None = None
    align_width: int = Field(default=768, ge=1)


class GigatokTokenizer(SystemTokenizer):
    """Pictures float [B, 3, S, S] in [0, 1] ⇄ codes [B, N, 1]."""

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[TokenizerConfig]] = GigatokConfig
    config: GigatokConfig

    def __init__(self, config: GigatokConfig):
        super().__init__(config)
        side = config.side
        self.grid = (side, side)
        self.tokens_per_item = config.num_tokens if config.form == "tokens" else side**2
        width, num_tokens = config.latent_width, self.tokens_per_item
        self.encoder, self.decoder = ConvEncoder(config), ConvDecoder(config)
        self.token_encoder = MapToTokens(width, config.encoder, self.grid, config.form, num_tokens)
        self.token_decoder = TokensToMap(
            width, config.decoder, self.grid, config.form, num_tokens, config.align_layer, config.align_width
        )
        self.quantizer = make_quantizer(config.quantizer)
        self.quant_conv = nn.Conv2d(width, self.quantizer.num_dims, 1)
        self.post_quant_conv = nn.Conv2d(self.quantizer.num_dims, width, 1)
        self.picture_size = (config.image_size, config.image_size)
        self.codebook_sizes = self.quantizer.codebook_sizes
        self.segments = (("image", num_tokens),)
        self.columns = {} if config.form == "tokens" else {"image": side}

    @classmethod
    def find_key_map(cls, config: SystemConfig) -> KeyMap:
        assert isinstance(config, GigatokConfig)
        grid = config.form != "tokens"
        sides = {
            "encoder": "s2dencoder" if grid else "s2to1encoder",
            "decoder": "s2ddecoder" if grid else "s1to2decoder",
        }
        rules = [*list_conv_rules(config, "llamagen"), (r"quantizer\.codebook", "quantize.embedding.weight")]
        layer = {
            "attention": "self_attn",
            "cross": "multihead_attn",
            "norm_attention": "norm1",
            "norm_cross": "norm2",
            "norm_mlp": "norm2" if config.form == "grid" else "norm3",
            "up": "linear1",
            "down": "linear2",
        }
        for side, theirs in sides.items():
            for our_name, name in layer.items():
                pattern = rf"token_{side}\.layers\.(\d+)\.{our_name}\.(.*)"
                rules.append((pattern, rf"{theirs}.transformer.\1.{name}.\2"))
            names = {
                "norm_in": "ln_pre",
                "embed": f"{side}_embed",
                "positions": "positional_embedding",
                "token_positions": "latent_token_positional_embedding",
                "start": "global_proj",
                "norm_out": "ln_post",
                "align": "distill_mlp",
            }
            rules += [(rf"token_{side}\.{our_name}(\..*)?", rf"{theirs}.{name}\1") for our_name, name in names.items()]
            rules.append((rf"token_{side}\.(.*)", rf"{theirs}.\1"))
        ignored = [r"quantize\.codebook_used", r"distill_mlp\..*"]
        if config.align_layer is None:  # a head of training alone
            ignored.append(rf"{sides['decoder']}\.distill_mlp\..*")
        return KeyMap(tuple(rules), tuple(ignored))

    # ---- the two ways

    def extract_map(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, S, S] in [0, 1] → the convolutions' map [B, Z, h, w]. ValueError for other sizes."""
        size = self.config.image_size
        if x.dim() != 4 or tuple(x.shape[1:]) != (3, size, size) or not len(x):
            raise ValueError(f"this tokenizer takes pictures [B, 3, {size}, {size}]; got {tuple(x.shape)}")
        return self.encoder(x * 2 - 1)

    def embed(self, maps: Tensor) -> Tensor:
        """A map [B, Z, h, w] → vectors before the quantizer [B, N, D]."""
        tokens = self.token_encoder(maps).transpose(1, 2).unsqueeze(2)  # [B, Z, 1, N]
        return self.quant_conv(tokens)[:, :, 0].transpose(1, 2)

    def unfold(self, vectors: Tensor, aligns: bool = False) -> tuple[Tensor, Tensor | None]:
        """Quantized vectors [B, N, D] → the map [B, Z, h, w] that the convolutions decode, and features to align."""
        tokens = self.post_quant_conv(vectors.transpose(1, 2).unsqueeze(2))[:, :, 0].transpose(1, 2)
        return self.token_decoder(tokens, aligns)

    def paint(self, maps: Tensor) -> Tensor:
        """A map [B, Z, h, w] → pictures [B, 3, S, S] about [0, 1]."""
        return (self.decoder(maps) + 1) / 2

    # ---- the contract

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        ids = self.quantizer(self.embed(self.extract_map(x))).ids
        return Codes.whole(ids, order="queries") if self.config.form == "tokens" else Codes.whole(ids, (1, *self.grid))

    def decode_batch(self, coded: Codes, options: CodingOptions) -> Tensor:
        assert self.tokens_per_item is not None
        check_counts(coded, self.tokens_per_item)
        vectors = self.quantizer.look_up(coded.ids[:, : self.tokens_per_item])
        return self.paint(self.unfold(vectors)[0]).clamp(0, 1)

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        maps = self.extract_map(x)
        quantized = self.quantizer(self.embed(maps), generator=generator)
        again, aligned = self.unfold(quantized.values, aligns=True)
        config, loss = self.config, quantized.loss
        if config.map_weight:
            squared = config.map_distance == "squared"
            near = mse_loss(again, maps.detach()) if squared else (1 - cosine_similarity(again, maps.detach())).mean()
            loss = loss + config.map_weight * near
        if config.direct_weight:
            loss = loss + config.direct_weight * mse_loss(self.paint(maps), x)
        features = {} if aligned is None else {"align": aligned}
        return Reconstruction(self.paint(again), loss, quantized.ids, quantized.numbers, features)

    # ---- what its authors write

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> GigatokConfig:
        """A YAML of GigaTok's `configs/vq`, or the arguments of its `VQVitModelPlus` and `VQVitModel2DPlus`."""
        found = AuthorsFields(fields)
        kind = found.open("model").take_text("model_cls", "")
        found = found.open("model", "init_args")
        grid = "2D" in kind or found.has("transformer_layer_type")
        layers = found.take_text("transformer_layer_type", "TransformerDecoderLayer")
        forms: dict[str, TokenForm] = {"TransformerLayer": "grid", "TransformerDecoderLayer": "grid_twice"}
        if layers not in forms:
            raise ValueError(f"transformer_layer_type {layers!r} is not read; {' and '.join(forms)} are")
        if not grid and not found.take_flag("multi_level_query_init", False):
            raise ValueError("multi_level_query_init false is not read: queries start as averages of the map here")
        multipliers = found.take_integers("encoder_ch_mult", (1, 1, 2, 2, 4))
        if found.take_integers("decoder_ch_mult", multipliers) != multipliers:
            raise ValueError("encoder_ch_mult and decoder_ch_mult differ; this network has one list for both")
        common = found.take_text("model_size", "small")
        depth, unit = found.take_integer("distill_depth", 0), found.take_flag("codebook_l2_norm", True)
        attends = found.take_flag("use_attn", True)
        return GigatokConfig(
            multipliers=multipliers,
            latent_width=found.take_integer("z_channels", 256),
            attention_levels=(len(multipliers) - 1,) if attends else (),
            middle_attention=attends,
            upsampling="shuffle" if found.take_flag("d2s_up", False) else "nearest",
            adaptive_norm=found.take_flag("adaptive_gn", False),
            form=forms[layers] if grid else "tokens",
            num_tokens=found.take_integer("num_latent_tokens", 256),
            encoder=_find_size(found.take_text("encoder_size", common)),
            decoder=_find_size(found.take_text("decoder_size", common)),
            quantizer={
                "kind": "vector",
                "codebook_size": found.take_integer("codebook_size", 16384),
                "num_dims": found.take_integer("codebook_embed_dim", 8),
                "normalize_latents": unit,
                "normalize_codes": unit,
                "commitment": found.take_number("commit_loss_beta", 0.25),
                "gradient": "rotation" if found.take_flag("rot", False) else "straight",
                "entropy_weight": found.take_number("entropy_loss_ratio", 0.0),
            },
            map_weight=found.take_number("fea_rec_loss_weight", 1.0),
            map_distance="squared" if found.take_text("fea_rec_loss_type", "cosine") == "mse" else "cosine",
            align_layer=depth or None,
            align_width=found.take_integer("out_inner_dim", 768),
        )


def _find_size(name: str) -> TransformerSize:
    if name not in SIZES:
        raise ValueError(f"there is no size {name!r}; there are {', '.join(SIZES)}")
    width, num_layers, num_heads = SIZES[name]
    return TransformerSize(width=width, num_layers=num_layers, num_heads=num_heads)

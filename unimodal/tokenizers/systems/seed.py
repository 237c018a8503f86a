"""SEED: what a picture shows, as 32 codes in a causal order (SEED, arXiv 2307.08041; SEED-LLaMA, 2310.01218).

A frozen EVA tower reads the picture, a causal Q-Former reads the tower, and its outputs are quantized. Codes do not
come back to pixels but to one feature of the picture, by which an unCLIP decoder draws: `decode_features`.

Shapes: B batch, Q queries, D code width, K width of the tower's features, F width of the picture's feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, mse_loss

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.quantizers import VectorQuantizer
from unimodal.tokenizers.parts.trunks.beit import BeitBlock
from unimodal.tokenizers.parts.trunks.blocks import make_tanh_pair
from unimodal.tokenizers.parts.trunks.query_former import QueryFormer, QueryFormerSizes
from unimodal.tokenizers.parts.trunks.timm_vit import PatchProjection, TimmBlock
from unimodal.tokenizers.rows import check_counts
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.authors_fields import AuthorsFields
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemTokenizer
from unimodal.tokenizers.systems.key_map import KeyMap

PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
CAUSAL_QUERIES = 32
UNCLIP = "stabilityai/stable-diffusion-2-1-unclip"


class SeedConfig(SystemConfig):
    """Sizes of the tower (`tower_…`), of the Q-Former (`former_…`) and of the way to the picture's feature. head: how
    the feature is read off the decoded codes: "mlp" of each code side by side, or "query", one more Q-Former."""

    family: Literal["seed"] = "seed"
    image_size: int = Field(default=224, ge=4)
    num_queries: int = Field(default=32, ge=1)
    codebook_size: int = 8192
    code_width: int = 32
    tower_width: int = 1408
    tower_depth: int = 39
    tower_heads: int = 16
    tower_inner: int = 6144
    tower_patch: int = 14
    former_width: int = 768
    former_layers: int = 12
    former_heads: int = 12
    former_inner: int = 3072
    cross_every: int = 2
    #: their code makes queries causal where there are exactly 32 of them, and no others
    causal: bool = True
    decode_depth: int = 4
    decode_heads: int = 12
    head: Literal["mlp", "query"] = "mlp"
    head_widths: tuple[int, int, int] = (256, 128, 32)
    feature_width: int = 1024

    @property
    def can_decode(self) -> bool:
        return False


class EvaTower(nn.Module):
    """The vision transformer of EVA-CLIP (arXiv 2303.15389) without a norm at its end: [B, 3, S, S] → [B, 1 + P, K]."""

    def __init__(self, config: SeedConfig):
        super().__init__()
        width, num_patches = config.tower_width, (config.image_size // config.tower_patch) ** 2
        self.patch_embed = PatchProjection(width, config.tower_patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + num_patches, width) * 0.02)
        self.blocks = nn.ModuleList(
            BeitBlock(width, config.tower_heads, config.tower_inner) for _ in range(config.tower_depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], dim=1) + self.pos_embed
        for block in self.blocks:
            h = block(h)
        return h


class SeedTokenizer(SystemTokenizer):
    """Pictures of one size → Q codes, each of which depends on the queries before it alone.

    ``encode``: float [B, 3, S, S] in [0, 1] → Codes [B, Q, 1]. There is no ``decode``: see `decode_features`.
    """

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[TokenizerConfig]] = SeedConfig
    reconstructs = False
    no_decoder = (
        f"SEED's codes stand for a feature of the picture, not for pixels: decode_features(codes) gives it, and an "
        f"unCLIP decoder such as {UNCLIP} draws from it"
    )
    config: SeedConfig
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: SeedConfig):
        super().__init__(config)
        if config.image_size % config.tower_patch:
            raise ValueError(f"image_size {config.image_size} is no multiple of the patch {config.tower_patch}")
        width = config.former_width
        sizes = QueryFormerSizes(
            width, config.former_layers, config.former_heads, config.former_inner, config.cross_every, config.causal
        )
        self.visual_encoder = EvaTower(config).requires_grad_(False)
        self.ln_vision = nn.LayerNorm(config.tower_width)
        self.former = QueryFormer(sizes, config.tower_width)
        self.query_tokens = nn.Parameter(torch.randn(1, config.num_queries, width) * 0.02)
        self.encode_task_layer = make_tanh_pair(width, width, config.code_width)
        self.decode_task_layer = make_tanh_pair(config.code_width, config.code_width, width)
        self.quantizer = VectorQuantizer(config.codebook_size, config.code_width)
        self.pos_embed_image = nn.Parameter(torch.zeros(1, config.num_queries, width))
        self.blocks_image = nn.ModuleList(
            TimmBlock(width, config.decode_heads, 4 * width, 1e-6, None) for _ in range(config.decode_depth)
        )
        if config.head == "query":
            self.reverse_former, self.reverse_tokens = QueryFormer(sizes, width), nn.Parameter(torch.zeros(1, 1, width))
            self.distill_image_proj = nn.Linear(width, config.feature_width)
        else:
            ends = (width, *config.head_widths)
            layers = [nn.Linear(a, b, bias=False) for a, b in zip(ends, ends[1:], strict=False)]
            self.image_down = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
            self.distill_image_proj = nn.Linear(config.num_queries * config.head_widths[-1], config.feature_width)
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1), persistent=False)
        self.codebook_sizes = (config.codebook_size,)
        self.segments, self.tokens_per_item = (("image", config.num_queries),), config.num_queries
        self.picture_size = (config.image_size, config.image_size)

    # ---- the two ways

    def read_picture(self, x: Tensor) -> Tensor:
        """x: [B, 3, S, S] in [0, 1] → the tower's features [B, 1 + P, K], normed."""
        size = self.config.image_size
        if x.dim() != 4 or tuple(x.shape[1:]) != (3, size, size):
            raise ValueError(f"this SEED takes pictures [B, 3, {size}, {size}]; got {tuple(x.shape)}")
        return self.ln_vision(self.visual_encoder((x - self.pixel_mean) / self.pixel_std))

    def ask(self, features: Tensor) -> Tensor:
        """The tower's features → what the queries read of them [B, Q, width]."""
        return self.former(self.query_tokens.expand(len(features), -1, -1), features)

    def decode_values(self, values: Tensor) -> Tensor:
        """Quantized vectors [B, Q, D] → the picture's feature [B, F]."""
        h = self.decode_task_layer(values) + self.pos_embed_image
        for block in self.blocks_image:
            h = block(h)
        if self.config.head == "query":
            return self.distill_image_proj(self.reverse_former(self.reverse_tokens.expand(len(h), -1, -1), h)[:, 0])
        return self.distill_image_proj(self.image_down(h).flatten(1))

    def decode_features(self, codes: Codes) -> Tensor:
        """The feature of each picture, float [B, F], from all of its codes. ValueError for other numbers of codes."""
        self.check_codes(codes)
        check_counts(codes, self.config.num_queries)
        with torch.inference_mode():
            return self.decode_values(self.quantizer.look_up(codes.ids))

    # ---- the contract

    def extract_features(self, x: Tensor) -> Tensor | None:
        """What the queries read, averaged: [B, width]."""
        with torch.inference_mode():
            return self.ask(self.read_picture(x)).mean(1)

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        latents = self.encode_task_layer(self.ask(self.read_picture(x)))
        return Codes.whole(self.quantizer(latents).ids, order="causal")

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        raise ValueError("SEED reconstructs features and no pixels; train it by its own loss")

    def training_loss(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, dict[str, float]]:
        """1 − cosine of what is decoded from the codes and what the queries read, and the quantizer's loss."""
        loss, numbers, _ = self.compare_meaning(x)
        return loss, numbers

    def compare_features(self, x: Tensor, features: Tensor) -> tuple[Tensor, dict[str, float]]:
        """As `training_loss`, with the squared error of the decoded feature to that of an unCLIP encoder [B, F]."""
        loss, numbers, values = self.compare_meaning(x)
        error = mse_loss(self.decode_values(values), features)
        return loss + error, {**numbers, "feature_error": float(error.detach())}

    def compare_meaning(self, x: Tensor) -> tuple[Tensor, dict[str, float], Tensor]:
        """The loss of meaning, numbers to log, and the quantized vectors [B, Q, D] with gradient."""
        with torch.no_grad():
            features = self.read_picture(x)
        queries = self.ask(features)
        made = self.quantizer(self.encode_task_layer(queries))
        apart = 1 - cosine_similarity(self.decode_task_layer(made.values), queries.detach(), dim=-1).mean()
        return apart + made.loss, {"meaning_distance": float(apart.detach()), **made.numbers}, made.values

    # ---- the authors' files

    key_map: ClassVar[KeyMap] = KeyMap(
        rules=(
            (r"former\.(.*)", r"Qformer.bert.\1"),
            (r"reverse_former\.(.*)", r"Reverse_Qformer.bert.\1"),
            (r"quantizer\.codebook", "quantize.embedding.weight"),
        ),
        ignored=(r"(Reverse_)?Qformer\.bert\.embeddings\.position_ids", r"pos_embed", r"blocks\..*"),
    )

    @classmethod
    def lacks_companion(cls, weights: Mapping[str, Tensor]) -> bool:
        return not any(name.startswith("visual_encoder.") for name in weights)

    @classmethod
    def add_companion(cls, weights: Mapping[str, Tensor], companion: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """companion: of EVA-CLIP's vision tower (eva_vit_g.pth); its last layer and head, which SEED does not have, are
        left out."""
        known = {name.split(".")[1] for name in companion if name.startswith("blocks.")}
        last = str(max((int(number) for number in known), default=0))
        taken = {
            f"visual_encoder.{name}": tensor
            for name, tensor in companion.items()
            if not name.startswith((f"blocks.{last}.", "norm.", "head.", "fc_norm."))
        }
        return {**weights, **taken}

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> SeedConfig:
        """The arguments of their quantizer, with BERT's and the tower's where they differ from the released ones."""
        own = AuthorsFields(fields)
        bert, tower, released = own.open("bert"), own.open("visual_encoder"), SeedConfig()
        width = tower.take_integer("embed_dim", released.tower_width)
        ratio = tower.take_number("mlp_ratio", released.tower_inner / released.tower_width)
        former_width = bert.take_integer("hidden_size", released.former_width)
        return SeedConfig.model_validate(
            {
                "image_size": tower.take_integer("img_size", released.image_size),
                "num_queries": (num_queries := own.take_integer("num_query_token", released.num_queries)),
                "causal": num_queries == CAUSAL_QUERIES,
                "codebook_size": own.take_integer("n_embed", released.codebook_size),
                "code_width": own.take_integer("codebook_embed_dim", released.code_width),
                "tower_width": width,
                "tower_depth": tower.take_integer("depth", released.tower_depth),
                "tower_heads": tower.take_integer("num_heads", released.tower_heads),
                "tower_inner": int(width * ratio),
                "tower_patch": tower.take_integer("patch_size", released.tower_patch),
                "former_width": former_width,
                "former_layers": bert.take_integer("num_hidden_layers", released.former_layers),
                "former_heads": bert.take_integer("num_attention_heads", released.former_heads),
                "former_inner": bert.take_integer("intermediate_size", released.former_inner),
                "cross_every": own.take_integer("cross_attention_freq", released.cross_every),
                "decode_depth": own.take_integer("decode_depth", released.decode_depth),
                "decode_heads": own.take_integer("block_heads", released.decode_heads),
                "head": "query" if own.take_flag("use_qformer_image", False) else "mlp",
                "head_widths": own.take_integers("image_down", released.head_widths),
                "feature_width": own.take_integer("image_features_dim", released.feature_width),
            }
        )

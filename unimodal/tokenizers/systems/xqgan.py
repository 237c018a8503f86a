"""XQ-GAN and ImageFolder: DINOv2 transformers around any mixture of products, scales and kinds of codes.

ImageFolder (arXiv 2410.01756) reads a picture by two sets of learned latent tokens, quantizes each by a multi-scale
residual code, and folds both codes of a place together. XQ-GAN (arXiv 2412.01762) is the same with sign codes, with one
scale, or without a product; RobusTok (arXiv 2503.08354) is one of them, trained to bear near codes in place of its own.

Shapes: B batch, P branches, L latent tokens of a branch (l rows and columns), D code width, M codes of a branch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.losses.perturbation import perturb_values
from unimodal.tokenizers.parts.quantizers import (
    LookupFreeQuantizer,
    MultiScaleQuantizer,
    ProductQuantizer,
    Quantizer,
    VectorQuantizer,
)
from unimodal.tokenizers.parts.trunks.timm_vit import TimmVit
from unimodal.tokenizers.rows import decode_rows
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.authors_fields import AuthorsFields
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemTokenizer
from unimodal.tokenizers.systems.key_map import KeyMap

#: width, layers and heads of DINOv2's models
DINO_SIZES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}


class XqganConfig(SystemConfig):
    """scales: sides of the multi-scale code; one scale is a plain code of a grid. signs: sign codes of `code_width`
    bits in place of a table. perturbed_share, perturbed_chance, near_codes: RobusTok's beta, alpha and delta: in that
    share of a batch a code becomes, with that chance, one of that many nearest ones."""

    family: Literal["xqgan"] = "xqgan"
    image_size: int = Field(256, ge=4)
    patch: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    #: where the factors of the blocks' channels begin; 1 to train from nothing, DINOv2's own for its weights
    channel_scale: float = 1e-5
    num_branches: int = Field(2, ge=1)
    scales: tuple[int, ...] = (1, 1, 2, 3, 3, 4, 5, 6, 8, 11)
    codebook_size: int = 4096
    code_width: int = 32
    signs: bool = False
    sign_scale: float = 1.0
    num_phis: int = 4
    phi_ratio: float = 0.5
    dropout: float = 0.1
    fewest_kept: int = 3
    entropy_weight: float = 0.0
    commitment: float = 0.25
    #: of a table that is trained from nothing: the means of the first vectors, and new rows for those that rest
    start: Literal["uniform", "kmeans"] = "uniform"
    dead_share: float = 0.0
    perturbed_share: float = Field(0.0, ge=0, le=1)
    perturbed_chance: float = Field(1.0, ge=0, le=1)
    near_codes: int = Field(100, ge=1)

    @model_validator(mode="after")
    def check_perturbed(self) -> Self:
        """ValueError for codes that cannot be perturbed: of several branches or scales, of signs, or too few."""
        if self.perturbed_share and (self.num_branches > 1 or len(self.scales) > 1 or self.signs):
            raise ValueError("codes are perturbed where there is one branch of one scale and a table; set "
                             "perturbed_share 0")  # fmt: skip
        if self.perturbed_share and self.near_codes > self.codebook_size:
            raise ValueError(f"near_codes is {self.near_codes}, and codebook_size {self.codebook_size}; give fewer")
        return self


def make_branch(config: XqganConfig) -> Quantizer:
    """The quantizer of one branch, by its settings."""
    if config.signs:
        if 2**config.code_width != config.codebook_size:
            raise ValueError(f"sign codes of {config.code_width} bits have {2**config.code_width} values, not "
                             f"codebook_size {config.codebook_size}")  # fmt: skip
        book: Quantizer = LookupFreeQuantizer((config.code_width,), entropy_weight=config.entropy_weight)
    elif len(config.scales) == 1:
        return VectorQuantizer(
            config.codebook_size, config.code_width, normalize_latents=True, normalize_codes=True,
            commitment=config.commitment, entropy_weight=config.entropy_weight, start=config.start,
            dead_share=config.dead_share,
        )  # fmt: skip
    else:
        book = VectorQuantizer(
            config.codebook_size, config.code_width, search="cosine", start=config.start, dead_share=config.dead_share
        )
    count = len(config.scales)
    gains = [config.sign_scale**scale / math.sqrt(config.code_width) for scale in range(count)]
    return MultiScaleQuantizer(
        book, config.scales, config.num_phis, config.phi_ratio, gains=gains if config.signs else None,
        normalize_latents=config.signs, commitment=config.commitment * count, dropout=config.dropout,
        fewest_kept=min(config.fewest_kept, count),
    )  # fmt: skip


class LatentEncoder(nn.Module):
    """A picture → the latent tokens of every branch, [B, P·L, width]: learned, in the picture's own positions, beside
    its patches."""

    lvl1LC: Tensor

    def __init__(self, config: XqganConfig):
        super().__init__()
        side = config.image_size // config.patch
        self.num_branches, self.side = config.num_branches, config.scales[-1]
        count = self.side**2
        self.model = TimmVit(
            config.width, config.depth, config.num_heads, side, config.patch, channel_scale=config.channel_scale
        )
        self.latent_tokens = nn.Parameter(torch.randn(1, config.num_branches * count, config.width) * 1e-6)
        self.lvl_embed = nn.Embedding(1 + config.num_branches, config.width)
        nn.init.trunc_normal_(self.lvl_embed.weight, std=math.sqrt(1 / config.width / 3))
        kinds = [0] * (side * side + 1) + [1 + branch for branch in range(config.num_branches) for _ in range(count)]
        self.register_buffer("lvl1LC", torch.tensor([kinds]))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, 3, H, W] in [-1, 1]."""
        model = self.model
        tokens = [model.place(model.patch_embed(x), model.side, model.side)]
        for latents in self.latent_tokens.chunk(self.num_branches, dim=1):
            tokens.append(model.place(latents.expand(len(x), -1, -1), self.side, self.side)[:, 1:])
        h = torch.cat(tokens, dim=1) + self.lvl_embed(self.lvl1LC)
        return model.run_blocks(h)[:, -self.latent_tokens.shape[1] :]


class LatentDecoder(nn.Module):
    """Latent tokens [B, L, width] → a picture: one mask token a patch, and the latents behind a class token."""

    lvl1LC: Tensor

    def __init__(self, config: XqganConfig):
        super().__init__()
        side = config.image_size // config.patch
        self.patch, self.side = config.patch, config.scales[-1]
        self.model = TimmVit(
            config.width, config.depth, config.num_heads, side, None, channel_scale=config.channel_scale
        )
        self.mask_token = nn.Parameter(torch.randn(1, 1, config.width) * 1e-6)
        self.lvl_embed = nn.Embedding(2, config.width)
        nn.init.trunc_normal_(self.lvl_embed.weight, std=math.sqrt(1 / config.width / 3))
        self.register_buffer("lvl1LC", torch.tensor([[0] * (side * side + 1) + [1] * (self.side**2 + 1)]))
        self.to_pixel = nn.ModuleDict({"model": nn.Linear(config.width, 3 * config.patch**2)})

    def forward(self, z: Tensor) -> Tensor:
        """→ [B, 3, H, W] in about [-1, 1]."""
        model, count = self.model, self.model.side**2
        masks = model.place(self.mask_token.expand(len(z), count, -1), model.side, model.side)
        h = torch.cat([masks, model.place(z, self.side, self.side)], dim=1) + self.lvl_embed(self.lvl1LC)
        pixels = self.to_pixel["model"](model.run_blocks(h)[:, 1 : 1 + count])
        cells = pixels.unflatten(1, (model.side, model.side)).unflatten(3, (self.patch, self.patch, 3))
        return cells.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class XqganTokenizer(SystemTokenizer):
    """Pictures of one size ⇄ M positions of P codes. Codes of the first whole scales decode to a coarser picture.

    ``encode``: float [B, 3, S, S] in [0, 1] → Codes [B, M, P].
    """

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[TokenizerConfig]] = XqganConfig
    config: XqganConfig

    def __init__(self, config: XqganConfig):
        super().__init__(config)
        if config.image_size % config.patch:
            raise ValueError(f"image_size {config.image_size} is no multiple of the patch {config.patch}")
        self.encoder, self.decoder = LatentEncoder(config), LatentDecoder(config)
        self.quant_conv = nn.Conv2d(config.width, config.code_width, 1)
        self.post_quant_conv = nn.Conv2d(config.num_branches * config.code_width, config.width, 1)
        self.quantizer = ProductQuantizer([make_branch(config) for _ in range(config.num_branches)])
        self.codebook_sizes = self.quantizer.codebook_sizes
        count = sum(side**2 for side in config.scales)
        self.segments, self.tokens_per_item = (("image", count),), count
        self.picture_size = (config.image_size, config.image_size)
        if len(config.scales) == 1:
            self.columns = {"image": config.scales[0]}

    @property
    def branches(self) -> list[Quantizer]:
        """The quantizer of each branch."""
        return self.quantizer.list_parts()

    def encode_latents(self, x: Tensor) -> Tensor:
        """x: [B, 3, S, S] in [0, 1] → latents of all branches side by side [B, L, P·D]."""
        size = self.config.image_size
        if x.dim() != 4 or tuple(x.shape[1:]) != (3, size, size):
            raise ValueError(f"this tokenizer takes pictures [B, 3, {size}, {size}]; got {tuple(x.shape)}")
        h = self.encoder(x * 2 - 1)  # [B, P·L, width]
        h = self.quant_conv(h.transpose(1, 2).unsqueeze(-1))[..., 0].transpose(1, 2)
        return torch.cat(h.chunk(self.config.num_branches, dim=1), dim=-1)

    def decode_latents(self, values: Tensor) -> Tensor:
        """Quantized latents [B, L, P·D] → [B, 3, S, S] in about [0, 1], not clamped."""
        h = self.post_quant_conv(values.transpose(1, 2).unsqueeze(-1))[..., 0].transpose(1, 2)
        return self.decoder(h) / 2 + 0.5

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        one_scale = len(self.config.scales) == 1
        ids = self.quantizer(self.encode_latents(x)).ids
        side = self.config.scales[0]
        return Codes.whole(ids, (1, side, side) if one_scale else None, "raster" if one_scale else "scales")

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        if len(self.config.scales) == 1 and any(count != self.tokens_per_item for count in codes.counts):
            raise ValueError(f"a picture is {self.tokens_per_item} codes; got {codes.counts}")
        rows = decode_rows(codes, lambda ids: self.decode_latents(self.quantizer.look_up(ids)))
        return torch.stack(rows).clamp(0, 1)

    def make_next_inputs(self, codes: Codes) -> Tensor:
        """What a next-scale model reads while it predicts the second scale and those after: float [B, N, P·D]."""
        inputs = []
        for branch, ids in zip(self.branches, codes.ids.split(1, dim=-1), strict=True):
            if not isinstance(branch, MultiScaleQuantizer):
                raise ValueError("codes of one scale have no next one")
            inputs.append(branch.make_next_inputs(ids))
        return torch.cat(inputs, dim=-1)

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """features: `latents` [B, L, P·D], and `meaning` [B, L, D], the values of the last branch, which the authors
        align with a semantic model."""
        config = self.config
        z = self.encode_latents(x)
        made = self.quantizer(z, generator=generator)
        values = made.values
        if self.training and config.perturbed_share:
            values = self._perturb(z, values, generator)
        meaning = made.values[..., -config.code_width :]
        features = {"latents": z, "meaning": meaning}
        return Reconstruction(self.decode_latents(values), made.loss, made.ids, made.numbers, features)

    @property
    def perturbs_codes(self) -> bool:
        return self.config.perturbed_share > 0

    def _perturb(self, z: Tensor, values: Tensor, generator: torch.Generator | None) -> Tensor:
        config, branch = self.config, self.branches[0]
        assert isinstance(branch, VectorQuantizer)
        unit = nn.functional.normalize(z, dim=-1)
        share, chance = config.perturbed_share, config.perturbed_chance
        return perturb_values(unit, values, branch.rows, chance, share, config.near_codes, generator)

    # ---- the authors' files

    @classmethod
    def find_key_map(cls, config: SystemConfig) -> KeyMap:
        assert isinstance(config, XqganConfig)
        owner = r"quantizes.\1" if config.num_branches > 1 else "quantize"
        return KeyMap(
            rules=(
                (r"quantizer\.parts\.(\d+)\.(?:book\.)?codebook", owner + r".embedding.weight"),
                (r"quantizer\.parts\.(\d+)\.phis\.(\d+)\.(.*)", owner + r".quant_resi.qresi_ls.\2.\3"),
                (r"quantizer\.parts\.(\d+)\.gains", owner + ".scaler"),
            ),
            ignored=(r".*ema_vocab_hit_SV", r"(semantic_model|detail_model|sem_linear)\..*"),
        )

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> XqganConfig:
        """Their YAML. ValueError for convolutional encoders and for positions that are not the picture's own."""
        own = AuthorsFields(fields)
        for name in ("enc_type", "dec_type"):
            if own.take_text(name, "dinov2") != "dinov2":
                raise ValueError(f"an XQ-GAN with {name} {fields[name]} is not read; dinov2 is")
        if not own.take_flag("abs_pos_embed", True):
            raise ValueError("an XQ-GAN with abs_pos_embed false is not read")
        model = own.take_text("encoder_model", "vit_base_patch14_dinov2.lvd142m")
        size = next((name for name in DINO_SIZES if f"vit_{name}_" in model), None)
        if size is None:
            raise ValueError(f"encoder_model {model} is not read; DINOv2 of {', '.join(DINO_SIZES)} is")
        vit = own.open("vit")
        width, depth, heads = DINO_SIZES[size]
        scales = own.take_integers("v_patch_nums", (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
        branches = own.take_integer("product_quant", 1)
        return XqganConfig(
            image_size=own.take_integer("img_size", own.take_integer("image_size", 256)),
            patch=own.take_integer("patch_size", 16),
            width=vit.take_integer("embed_dim", width),
            depth=vit.take_integer("depth", depth),
            num_heads=vit.take_integer("num_heads", heads),
            num_branches=branches,
            scales=scales,
            codebook_size=own.take_integer("codebook_size", 16384),
            code_width=own.take_integer("codebook_embed_dim", 8),
            signs=own.take_flag("lfq", False),
            sign_scale=own.take_number("scale", 1.0),
            num_phis=own.take_integer("share_quant_resi", 4),
            phi_ratio=own.take_number("quant_resi", 0.5),
            dropout=own.take_number("codebook_drop", 0.0),
            fewest_kept=own.take_integer("start_drop", 1),
            entropy_weight=own.take_number("entropy_loss_ratio", 0.0),
            perturbed_share=own.take_number("beta", 0.0) if branches == 1 else 0.0,
            perturbed_chance=own.take_number("alpha", 1.0),
            near_codes=own.take_integer("delta", 100),
        )

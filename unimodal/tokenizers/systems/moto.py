"""Moto: what moves from one frame to the next, as a few latent motion tokens (arXiv 2412.04445).

A frozen ViT-MAE sees both frames; learned queries read both (M-Former) and are quantized. The decoder draws the later
frame from the pixels of the earlier one and one vector pooled from all codes. So a clip is its first frame, which the
caller gives, and a few codes for each frame after it.

ViT-MAE of transformers shuffles patches even where it masks none, and the authors give it no noise to shuffle by: their
codes differ from call to call. Here patches keep their natural order.

Shapes: B batch, T frames, Q motion tokens of a pair of frames, P patches, D width of a code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.quantizers import VectorQuantizer
from unimodal.tokenizers.parts.trunks.blocks import make_tanh_pair
from unimodal.tokenizers.parts.trunks.hub_vit import HubPatchEmbedding, HubVit, HubVitSizes
from unimodal.tokenizers.rows import group_by_size
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemTokenizer
from unimodal.tokenizers.systems.key_map import KeyMap

PIXEL_MEAN, PIXEL_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class MotoConfig(SystemConfig):
    """typed: mark the later frame's half with a type of its own, which the released weights do not."""

    family: Literal["moto"] = "moto"
    image_size: int = Field(224, ge=4)
    num_queries: int = Field(8, ge=1)
    codebook_size: int = 128
    code_width: int = 32
    encoder_width: int = 1024
    encoder_layers: int = 24
    encoder_heads: int = 16
    encoder_inner: int = 4096
    encoder_patch: int = 16
    former_width: int = 768
    former_layers: int = 4
    former_heads: int = 12
    former_inner: int = 3072
    decoder_width: int = 768
    decoder_layers: int = 12
    decoder_heads: int = 12
    decoder_inner: int = 3072
    decoder_patch: int = 16
    eps: float = 1e-12
    typed: bool = False
    num_frames: int = Field(2, ge=2)
    fps: float = Field(5.0, gt=0)


class MaskedAutoencoderTrunk(HubVit):
    """The encoder of ViT-MAE (arXiv 2111.06377) that masks nothing and keeps the order of patches."""

    def __init__(self, sizes: HubVitSizes, patch: int, num_patches: int):
        super().__init__(sizes)
        self.embeddings = nn.Module()
        self.embeddings.cls_token = nn.Parameter(torch.randn(1, 1, sizes.width) * 0.02)
        self.embeddings.position_embeddings = nn.Parameter(torch.randn(1, 1 + num_patches, sizes.width) * 0.02)
        self.embeddings.patch_embeddings = HubPatchEmbedding(sizes.width, patch)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, 3, H, W], scaled → [B, 1 + P, D], the class token first."""
        patches = self.embeddings.patch_embeddings(x)
        tokens = torch.cat([self.embeddings.cls_token.expand(len(x), -1, -1), patches], dim=1)
        return self.run_layers(tokens + self.embeddings.position_embeddings)


class MotionFormer(HubVit):
    """Learned queries among the features of both frames: [queries, earlier frame, separator, later frame]."""

    def __init__(self, sizes: HubVitSizes, inputs: int, num_queries: int, num_features: int, typed: bool):
        super().__init__(sizes)
        self.num_queries, self.typed = num_queries, typed
        self.embeddings = nn.Module()
        self.embeddings.latent_motion_token = nn.Parameter(torch.randn(1, num_queries, sizes.width) * 0.02)
        self.embeddings.sep_token = nn.Parameter(torch.randn(1, 1, sizes.width) * 0.02)
        self.embeddings.projection = nn.Linear(inputs, sizes.width)
        length = num_queries + 2 * num_features + 1
        self.embeddings.position_embeddings = nn.Parameter(torch.randn(1, length, sizes.width) * 0.02)
        self.embeddings.token_type_embeddings = nn.Parameter(torch.randn(2, sizes.width) * 0.02)

    def forward(self, earlier: Tensor, later: Tensor) -> Tensor:
        """Features of both frames, each [B, 1 + P, inputs] → motion tokens [B, Q, width]."""
        own = self.embeddings
        batch = len(earlier)
        tokens = torch.cat(
            [
                own.latent_motion_token.expand(batch, -1, -1),
                own.projection(earlier),
                own.sep_token.expand(batch, -1, -1),
                own.projection(later),
            ],
            dim=1,
        )
        kinds = own.token_type_embeddings[0].expand(tokens.shape[1], -1)
        if self.typed:
            kinds = torch.cat([kinds[: -later.shape[1]], own.token_type_embeddings[1].expand(later.shape[1], -1)])
        return self.run_layers(tokens + own.position_embeddings + kinds)[:, : self.num_queries]


class MotionDecoderTrunk(HubVit):
    """The patches of the earlier frame, to each of which one vector pooled from the motion tokens is added."""

    def __init__(self, sizes: HubVitSizes, patch: int, num_queries: int, num_patches: int):
        super().__init__(sizes)
        self.embeddings = nn.Module()
        self.embeddings.patch_embeddings = HubPatchEmbedding(sizes.width, patch)
        self.embeddings.query_pooling_layer = nn.Linear(num_queries * sizes.width, sizes.width)
        self.embeddings.position_embeddings = nn.Parameter(torch.randn(1, num_patches, sizes.width) * 0.02)

    def forward(self, x: Tensor, motion: Tensor) -> Tensor:
        """x: [B, 3, H, W], scaled, and motion: [B, Q, width] → [B, P, width]."""
        own = self.embeddings
        pooled = own.query_pooling_layer(motion.flatten(1)).unsqueeze(1)
        return self.run_layers(own.patch_embeddings(x) + pooled + own.position_embeddings)


class MotionDecoder(nn.Module):
    """The later frame from the earlier one and the motion tokens."""

    def __init__(self, sizes: HubVitSizes, patch: int, num_queries: int, num_patches: int):
        super().__init__()
        self.patch = patch
        self.transformer = MotionDecoderTrunk(sizes, patch, num_queries, num_patches)
        self.decoder = nn.Sequential(nn.Conv2d(sizes.width, 3 * patch**2, 1))

    def forward(self, x: Tensor, motion: Tensor) -> Tensor:
        """→ [B, 3, H, W], scaled."""
        side = x.shape[2] // self.patch
        features = self.transformer(x, motion).transpose(1, 2).unflatten(2, (side, -1))
        return pixel_shuffle(self.decoder(features), self.patch)


class MotoTokenizer(SystemTokenizer):
    """A clip, given its first frame, as Q codes for each later frame.

    ``encode``: float [B, 3, T, S, S] in [0, 1] → Codes [B, (T - 1)·Q, 1]. ``decode`` needs the first frames as
    ``Condition(medium=[B, 3, S, S])`` and gives [B, 3, T, S, S]; each frame is drawn from the one drawn before.
    """

    modality: ClassVar[str] = "video"
    config_class: ClassVar[type[TokenizerConfig]] = MotoConfig
    decode_conditions = frozenset({"medium"})
    key_map: ClassVar[KeyMap] = KeyMap(
        rules=((r"quantizer\.codebook", r"vector_quantizer.embedding.weight"),), ignored=(r"loss_fn_lpips\..*",)
    )
    config: MotoConfig
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: MotoConfig):
        super().__init__(config)
        for patch in (config.encoder_patch, config.decoder_patch):
            if config.image_size % patch:
                raise ValueError(f"image_size {config.image_size} is no multiple of the patch {patch}")
        num_seen, num_drawn = (
            (config.image_size // patch) ** 2 for patch in (config.encoder_patch, config.decoder_patch)
        )
        self.image_encoder = MaskedAutoencoderTrunk(
            HubVitSizes(
                config.encoder_width, config.encoder_layers, config.encoder_heads, config.encoder_inner, config.eps
            ),
            config.encoder_patch,
            num_seen,
        ).requires_grad_(False)
        self.m_former = MotionFormer(
            HubVitSizes(
                config.former_width, config.former_layers, config.former_heads, config.former_inner, config.eps
            ),
            config.encoder_width,
            config.num_queries,
            1 + num_seen,
            config.typed,
        )
        self.vq_down_resampler = make_tanh_pair(config.former_width, config.decoder_width, config.code_width)
        self.vq_up_resampler = make_tanh_pair(config.code_width, config.code_width, config.decoder_width)
        self.quantizer = VectorQuantizer(config.codebook_size, config.code_width)
        self.decoder = MotionDecoder(
            HubVitSizes(
                config.decoder_width, config.decoder_layers, config.decoder_heads, config.decoder_inner, config.eps
            ),
            config.decoder_patch,
            config.num_queries,
            num_drawn,
        )
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1) + 1e-6, persistent=False)
        self.codebook_sizes = (config.codebook_size,)
        self.segments, self.frame_marks = (("video", config.num_queries),) * (config.num_frames - 1), True
        self.tokens_per_item = config.num_queries * (config.num_frames - 1)
        self.picture_size = (config.image_size, config.image_size)
        self.frames_per_second, self.num_frames = config.fps, config.num_frames

    # ---- one pair of frames

    def scale(self, x: Tensor) -> Tensor:
        """Pixels in [0, 1] → as the network sees them, [B, 3, H, W]."""
        return (x - self.pixel_mean) / self.pixel_std

    def encode_pair(self, earlier: Tensor, later: Tensor) -> Tensor:
        """Features of two frames, each [B, 1 + P, D of the trunk] → latents [B, Q, D], before they are quantized."""
        return self.vq_down_resampler(self.m_former(earlier, later))

    def draw_next(self, earlier: Tensor, values: Tensor) -> Tensor:
        """The frame after `earlier` [B, 3, S, S] in [0, 1], by vectors [B, Q, D] → [B, 3, S, S], not clamped."""
        drawn = self.decoder(self.scale(earlier), self.vq_up_resampler(values))
        return drawn * self.pixel_std + self.pixel_mean

    # ---- clips

    def encode_latents(self, x: Tensor) -> Tensor:
        """x: [B, 3, T, S, S] → latents [B, (T - 1)·Q, D]."""
        size = self.config.image_size
        if x.dim() != 5 or x.shape[1] != 3 or x.shape[2] < 2 or tuple(x.shape[3:]) != (size, size):
            raise ValueError(f"Moto takes clips [B, 3, T, {size}, {size}] of two frames or more; got {tuple(x.shape)}")
        with torch.no_grad():
            features = self.image_encoder(self.scale(x.transpose(1, 2).flatten(0, 1))).unflatten(0, (len(x), -1))
        latents = self.encode_pair(features[:, :-1].flatten(0, 1), features[:, 1:].flatten(0, 1))
        return latents.unflatten(0, (len(x), -1)).flatten(1, 2)

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Codes:
        frames = [x.shape[2]] * len(x) if lengths is None else lengths.tolist()
        found: dict[int, Tensor] = {}
        for count, items in group_by_size(frames).items():
            ids = self.quantizer(self.encode_latents(x[items, :, :count])).ids
            found.update(zip(items, ids.cpu(), strict=True))
        return Codes.from_rows([found[item] for item in range(len(x))], order="time").to(x.device)

    def decode_batch(self, codes: Codes, options: CodingOptions) -> Tensor:
        count = self.config.num_queries
        if options.condition is None or options.condition.medium is None:
            raise ValueError("Moto's codes say what moves: give the first frames too, Condition(medium=[B, 3, S, S])")
        if any(number % count for number in codes.counts):
            raise ValueError(f"a clip is a multiple of {count} codes; got {codes.counts}")
        values = self.quantizer.look_up(codes.ids)
        frames = [options.condition.medium]
        for step in range(codes.ids.shape[1] // count):
            real = codes.mask[:, step * count, None, None, None]
            drawn = self.draw_next(frames[-1], values[:, step * count : (step + 1) * count]).clamp(0, 1)
            frames.append(torch.where(real, drawn, torch.zeros_like(drawn)))
        return torch.stack(frames, dim=2)

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """Each frame is drawn from the real one before it, as in the authors' training."""
        made = self.quantizer(self.encode_latents(x))
        pairs = made.values.unflatten(1, (-1, self.config.num_queries)).flatten(0, 1)
        drawn = self.draw_next(x[:, :, :-1].transpose(1, 2).flatten(0, 1), pairs).unflatten(0, (len(x), -1))
        return Reconstruction(torch.cat([x[:, :, :1], drawn.transpose(1, 2)], dim=2), made.loss, made.ids)

    # ---- the authors' files

    @classmethod
    def lacks_companion(cls, weights: Mapping[str, Tensor]) -> bool:
        return not any(name.startswith("image_encoder.") for name in weights)

    @classmethod
    def add_companion(cls, weights: Mapping[str, Tensor], companion: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """companion: of ViT-MAE, alone or with its decoder."""
        names = {
            name: name.removeprefix("vit.") for name in companion if not name.startswith(("decoder.", "mask_token"))
        }
        return {**weights, **{f"image_encoder.{ours}": companion[theirs] for theirs, ours in names.items()}}

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> MotoConfig:
        """Their config.yaml. ValueError for parts of it that are not read."""
        sections: dict[str, Mapping[str, object]] = {}
        for name in ("m_former", "decoder", "vector_quantizer", "image_encoder_mae"):
            section = fields.get(name, {})
            assert isinstance(section, Mapping)
            inner = section.get("config", section)
            assert isinstance(inner, Mapping)
            sections[name] = inner
        former, decoder, trunk = sections["m_former"], sections["decoder"], sections["image_encoder_mae"]
        if decoder.get("query_fusion_mode", "add") != "add" or decoder.get("use_mask_token", False):
            raise ValueError("a Moto decoder that does not add the pooled motion tokens is not read")
        found = {
            "image_size": decoder["image_size"],
            "num_queries": former["query_num"],
            "codebook_size": sections["vector_quantizer"]["n_e"],
            "code_width": sections["vector_quantizer"]["e_dim"],
            "encoder_width": former["input_hidden_size"],
            "decoder_patch": decoder["patch_size"],
            "eps": former["layer_norm_eps"],
            "typed": not former.get("legacy", True),
        }
        sizes = {"width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads"}
        sizes["inner"] = "intermediate_size"
        for part, section in (("former", former), ("decoder", decoder), ("encoder", trunk)):
            found |= {f"{part}_{ours}": section[theirs] for ours, theirs in sizes.items() if theirs in section}
        if "patch_size" in trunk:
            found["encoder_patch"] = trunk["patch_size"]
        return MotoConfig.model_validate(found)

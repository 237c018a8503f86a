"""UniFlow: a pretrained encoder tuned to keep details without leaving its meaning, and a flow for each patch's pixels
(arXiv 2510.10575).

The encoder's last layer is squeezed to a few numbers a patch; a small transformer over all of them gives each patch's
condition, of which a rectified flow draws that patch's pixels by itself. In training every layer of the encoder is
compared with that of its frozen self.

The network is that of ZhengrongYue/UniFlow @e6322d0, with InternViT's layers as transformers has them. Its training is
in no released code: the weights of layers follow the paper's formula; β and the share of this loss are settings, and
times are drawn here as FlexTok's are, for each patch its own.

Shapes: B batch, N patches in raster order, C width of a latent, D width of the encoder, L layers, P numbers of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from unimodal.tokenizers.codes import Latents
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.losses.self_distillation import distill_layers
from unimodal.tokenizers.parts.heads.flow import draw_flow_step, sample_flow
from unimodal.tokenizers.parts.heads.patch_flow import PatchFlowHead
from unimodal.tokenizers.parts.positions import make_mae_positions
from unimodal.tokenizers.parts.trunks.timm_vit import TimmBlock
from unimodal.tokenizers.parts.trunks.vision_tower import TowerSettings, VisionTower
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.authors_fields import AuthorsFields
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemLatents
from unimodal.tokenizers.systems.key_map import KeyMap
from unimodal.tokenizers.systems.uniflow_names import KEY_MAP, join_attention, split_attention


class UniflowConfig(SystemConfig):
    """num_global, global_heads: of the transformer over all patches. num_flow: layers of the patches' flow. steps: of
    the flow. teacher: the frozen encoder is kept beside the tuned one, to train by; without it there is no
    distillation. beta, distill_weight: of the distillation."""

    family: Literal["uniflow"] = "uniflow"
    tower: TowerSettings = TowerSettings(
        kind="internvit", image_size=448, patch_size=14, width=1024, num_layers=24, num_heads=16, inner=4096
    )
    latent_width: int = Field(default=64, ge=1)
    num_global: int = Field(default=6, ge=0)
    global_heads: int = Field(default=16, ge=1)
    num_flow: int = Field(default=12, ge=1)
    steps: int = Field(default=1, ge=1)
    teacher: bool = False
    beta: float = Field(default=1.0, ge=0)
    distill_weight: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def check_fit(self) -> Self:
        """ValueError for patches that do not fill the picture, and heads that do not divide."""
        if self.tower.image_size % self.tower.patch_size:
            raise ValueError(f"image_size {self.tower.image_size} is not whole patches of {self.tower.patch_size}")
        if self.tower.width % self.global_heads:
            raise ValueError(f"{self.global_heads} global heads do not divide a width of {self.tower.width}")
        return self


def make_squeeze(inputs: int, inner: int, outputs: int) -> nn.Sequential:
    """Two layers with a GELU between."""
    return nn.Sequential(nn.Linear(inputs, inner), nn.GELU(), nn.Linear(inner, outputs))


class UniflowTokenizer(SystemLatents):
    """Pictures float [B, 3, S, S] in [0, 1] ⇄ Latents [B, N, C]; a patch's pixels begin from noise."""

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[TokenizerConfig]] = UniflowConfig
    key_map: ClassVar[KeyMap] = KEY_MAP
    config: UniflowConfig

    def __init__(self, config: UniflowConfig):
        super().__init__(config)
        tower = config.tower
        self.encoder = VisionTower(tower, frozen=False)
        self.teacher: VisionTower | None = None
        if config.teacher:
            self.teacher = VisionTower(tower)
            self.teacher.load_state_dict(self.encoder.state_dict())
        self.squeeze = make_squeeze(tower.width, tower.width, config.latent_width)
        self.widen = make_squeeze(config.latent_width, tower.width, tower.width)
        positions = make_mae_positions(tower.side, tower.width)
        self.global_positions, self.flow_positions = (nn.Parameter(positions[None].clone()) for _ in range(2))
        self.blocks = nn.ModuleList(
            TimmBlock(tower.width, config.global_heads, 4 * tower.width, 1e-5, None) for _ in range(config.num_global)
        )
        self.flow = PatchFlowHead(3 * tower.patch_size**2, tower.width, tower.width, config.num_flow)
        self.width, self.tokens_per_item = config.latent_width, tower.side**2
        self.picture_size = (tower.image_size, tower.image_size)
        self.decode_settings = frozenset({"noise", "steps"})

    def load_encoder(self, folder: str | Path) -> None:
        """Takes a checkpoint's weights for the encoder and its frozen self. ValueError where they do not fit."""
        self.encoder.load_pretrained(folder)
        if self.teacher is not None:
            self.teacher.load_pretrained(folder)

    # ---- pictures, patches, latents

    def check_pictures(self, x: Tensor) -> None:
        """ValueError for pictures of another size."""
        size = self.config.tower.image_size
        if x.dim() != 4 or tuple(x.shape[1:]) != (3, size, size):
            raise ValueError(f"this UniFlow takes pictures [B, 3, {size}, {size}]; got {tuple(x.shape)}")

    def to_patches(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, S, S] in [0, 1] → scaled patches [B, N, P], the colours slowest."""
        size = self.config.tower.patch_size
        cells = self.encoder.prepare(x).unflatten(3, (-1, size)).unflatten(2, (-1, size))  # [B, 3, h, p, w, p]
        return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def to_pictures(self, patches: Tensor) -> Tensor:
        """The inverse of `to_patches`."""
        side, size = self.config.tower.side, self.config.tower.patch_size
        cells = patches.unflatten(2, (3, size, size)).unflatten(1, (side, side)).permute(0, 3, 1, 4, 2, 5)
        return cells.flatten(4, 5).flatten(2, 3) * self.encoder.deviation + self.encoder.mean

    def make_conditions(self, latents: Tensor) -> Tensor:
        """Latents [B, N, C] → what each patch's flow is told, [B, N, D]."""
        tokens = self.widen(latents) + self.global_positions
        for block in self.blocks:
            tokens = block(tokens)
        return tokens + self.flow_positions

    def draw(self, latents: Tensor, noise: Tensor, steps: int | None = None) -> Tensor:
        """Latents [B, N, C] and noise [B, N, P] → [B, 3, S, S] in about [0, 1], not clamped."""
        told = self.make_conditions(latents).flatten(0, 1)

        def find_velocity(x: Tensor, time: Tensor) -> Tensor:
            return -self.flow(x, 1 - time, told)  # the head counts time from noise to data

        made = sample_flow(find_velocity, noise.flatten(0, 1), self.config.steps if steps is None else steps)
        return self.to_pictures(made.unflatten(0, latents.shape[:2]))

    # ---- the contract

    def noise_shape(self, num_positions: int) -> tuple[int, ...]:
        return num_positions, 3 * self.config.tower.patch_size**2

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Latents:
        self.check_pictures(x)
        values, side = self.squeeze(self.encoder(x)[-1]), self.config.tower.side
        return Latents(values, torch.ones(values.shape[:2], dtype=torch.bool, device=x.device), (1, side, side))

    def decode_batch(self, coded: Latents, options: CodingOptions) -> Tensor:
        count = self.config.tower.side**2
        if any(found != count for found in coded.counts) or coded.values.shape[2] != self.width:
            raise ValueError(f"a picture is {count} latents of width {self.width}; got {coded.counts} of width "
                             f"{coded.values.shape[2]}")  # fmt: skip
        assert options.noise is not None
        return self.draw(coded.values, options.noise, options.steps).clamp(0, 1)

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        """In training `decoded` is what the velocities at one drawn time a patch point at, and `loss` that of the flow
        and of the distillation; in eval mode it is drawn from noise. features: `meaning` [B, N, D]."""
        self.check_pictures(x)
        layers = self.encoder(x)
        latents, features = self.squeeze(layers[-1]), {"meaning": layers[-1]}
        if not self.training:
            noise = torch.randn(len(x), *self.noise_shape(latents.shape[1]), generator=generator).to(latents)
            return Reconstruction(self.draw(latents, noise), x.new_zeros(()), None, {}, features)
        told = self.make_conditions(latents).flatten(0, 1)
        step = draw_flow_step(self.to_patches(x).flatten(0, 1), generator)
        velocity = -self.flow(step.noisy, 1 - step.time, told)
        loss = (velocity - step.target).square().mean()
        numbers = {"flow": float(loss.detach())}
        if self.teacher is not None:
            with torch.no_grad():
                wanted = self.teacher(x)
            apart = distill_layers(layers[1:], wanted[1:], self.config.beta)
            loss = loss + self.config.distill_weight * apart
            numbers["distillation"] = float(apart.detach())
        decoded = self.to_pictures(step.estimate(velocity).unflatten(0, latents.shape[:2]))
        return Reconstruction(decoded, loss, None, numbers, features)

    def training_loss(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, dict[str, float]]:
        """The losses of the flow and of the distillation alone."""
        made = self.reconstruct(x, lengths)
        return made.loss, made.numbers

    # ---- what its authors write

    @classmethod
    def read_authors_config(cls, fields: Mapping[str, object]) -> UniflowConfig:
        """Their config.json. ValueError for an encoder that is not InternViT with plain norms, and for a decoder
        without the squeeze or the transformer over all patches."""
        own = AuthorsFields(fields)
        norm, normed = own.take_text("norm_type", "layer_norm"), own.take_flag("qk_normalization", False)
        if norm != "layer_norm" or normed or not own.take_flag("qkv_bias", True):
            raise ValueError(f"a UniFlow encoder with norms {norm}, normed queries or no biases is not read")
        if not own.take_flag("use_chal_proj", True) or not own.take_flag("use_global_blocks", True):
            raise ValueError("a UniFlow without use_chal_proj or use_global_blocks is not read")
        return UniflowConfig(
            tower=TowerSettings(
                kind="internvit",
                image_size=own.take_integer("image_size", 448),
                patch_size=own.take_integer("patch_size", 14),
                width=own.take_integer("hidden_size", 1024),
                num_layers=own.take_integer("num_hidden_layers", 24),
                num_heads=own.take_integer("num_attention_heads", 16),
                inner=own.take_integer("intermediate_size", 4096),
            ),
            latent_width=own.take_integer("latent_ch", 64),
            num_global=own.take_integer("global_blocks_depth", 6),
            num_flow=own.take_integer("num_decoder_layers", 12),
            steps=int(own.take_text("num_sampling_steps", "1")),
        )

    @classmethod
    def from_authors(cls, weights: Mapping[str, Tensor], config: SystemConfig, source: str = "the checkpoint") -> Self:
        return super().from_authors(split_attention(weights), config, source)

    def collect_authors_state(self) -> dict[str, Tensor]:
        """ValueError for a tokenizer with its teacher, which the authors' file has no place for."""
        if self.teacher is not None:
            raise ValueError("a UniFlow with its teacher is not written for its authors; set teacher to false")
        return join_attention(super().collect_authors_state())

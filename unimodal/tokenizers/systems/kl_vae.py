"""The KL autoencoder of latent diffusion (arXiv 2112.10752): pictures as maps of a few continuous channels.

KL-16, which MAR (2406.11838) trained and TokenBridge cuts into bins, is a setting of it: 16 channels for every 16×16
pixels, scaled by 0.2325.

Shapes: B batch, C channels of the map, h and w its sides, N = h·w positions in raster order.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from unimodal.tokenizers.codes import Latents
from unimodal.tokenizers.interface import CodingOptions, Condition
from unimodal.tokenizers.parts.kl_vae import KlVae, VaeSettings
from unimodal.tokenizers.rows import decode_rows, find_picture_grid, pad_media
from unimodal.tokenizers.stored import TokenizerConfig
from unimodal.tokenizers.systems.base import Reconstruction, SystemConfig, SystemLatents
from unimodal.tokenizers.systems.conv_names import list_conv_rules
from unimodal.tokenizers.systems.key_map import KeyMap


class KlVaeConfig(SystemConfig):
    """image_size: of the squares that files are fitted to. kl_weight: of the divergence of a picture's latents from
    normal ones, summed over its values."""

    family: Literal["kl_vae"] = "kl_vae"
    image_size: int = Field(default=256, ge=1)
    vae: VaeSettings = VaeSettings(scale=0.2325, multipliers=(1, 1, 2, 2, 4), encoder_attention=(4,))
    kl_weight: float = Field(default=1e-6, ge=0)


class KlVaeTokenizer(SystemLatents):
    """Pictures float [B, 3, H, W] in [0, 1] ⇄ Latents [B, N, C]; any height and width that the factor divides."""

    modality: ClassVar[str] = "image"
    config_class: ClassVar[type[TokenizerConfig]] = KlVaeConfig
    config: KlVaeConfig

    def __init__(self, config: KlVaeConfig):
        super().__init__(config)
        if config.image_size % config.vae.factor:
            raise ValueError(f"image_size {config.image_size} is no multiple of {config.vae.factor}")
        self.vae, self.width = KlVae(config.vae), config.vae.channels
        self.picture_size = (config.image_size, config.image_size)
        self.tokens_per_item = (config.image_size // config.vae.factor) ** 2

    @classmethod
    def find_key_map(cls, config: SystemConfig) -> KeyMap:
        """The names of latent-diffusion's checkpoints, which MAR's kept."""
        assert isinstance(config, KlVaeConfig)
        rules = list_conv_rules(config.vae.choose_trunk(config.vae.channels), "taming")
        return KeyMap((*((rf"vae\.{ours}", theirs) for ours, theirs in rules), (r"vae\.(.*)", r"\1")), (r"loss\..*",))

    def _check_pictures(self, x: Tensor) -> Tensor:
        """x: [B, 3, H, W] in [0, 1] → in [-1, 1]. ValueError for sides that the factor does not divide."""
        factor = self.config.vae.factor
        if x.dim() != 4 or x.shape[1] != 3 or any(side < 1 or side % factor for side in x.shape[2:]):
            raise ValueError(f"pictures are [B, 3, H, W] with sides that {factor} divides; got {tuple(x.shape)}")
        return x * 2 - 1

    def encode_batch(self, x: Tensor, lengths: Tensor | None, options: CodingOptions) -> Latents:
        maps = self.vae.encode(self._check_pictures(x))
        values = maps.flatten(2).transpose(1, 2)
        mask = torch.ones(values.shape[:2], dtype=torch.bool, device=x.device)
        return Latents(values, mask, (1, maps.shape[2], maps.shape[3]))

    def decode_batch(self, coded: Latents, options: CodingOptions) -> Tensor:
        def decode(values: Tensor) -> Tensor:
            grid = find_picture_grid(values.shape[1], coded.grid)
            return self.vae.decode(values.transpose(1, 2).unflatten(2, grid)) / 2 + 0.5

        return pad_media(decode_rows(coded, decode)).clamp(0, 1)

    def reconstruct(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        condition: Condition | None = None,
        generator: torch.Generator | None = None,
    ) -> Reconstruction:
        mean, log_variance = self.vae.encode_distribution(self._check_pictures(x))
        maps = mean
        if self.training:
            maps = mean + (0.5 * log_variance).exp() * torch.randn(mean.shape, generator=generator).to(mean)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum((1, 2, 3)).mean()
        decoded = self.vae.decode(maps * self.config.vae.scale) / 2 + 0.5
        numbers = {"divergence": float(divergence.detach())}
        return Reconstruction(decoded, self.config.kl_weight * divergence, None, numbers)

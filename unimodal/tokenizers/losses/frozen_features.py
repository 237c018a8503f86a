"""Frozen networks whose features losses compare: the packaged EfficientNet-lite0, or a vision encoder of transformers.

Shapes: B batch, H, W height and width, C channels, L positions of a feature map.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

PACKAGED = "efficientnet"


class FrozenFeatures(nn.Module, ABC):
    """A network that is never trained; gradients reach the pictures through it, and it stays in eval mode."""

    widths: tuple[int, ...]  # channels of each feature map, shallow to deep

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    @abstractmethod
    def forward(self, x: Tensor) -> list[Tensor]:
        """Pictures [B, 3, H, W] in [0, 1] → feature maps, each [B, C, L]."""

    @abstractmethod
    def read_patches(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1] → the deepest map, one vector a place: [B, L, C]."""


class EfficientNetFeatures(FrozenFeatures):
    """EfficientNet-lite0 (arXiv 1905.11946) of the [eval] extra: the maps before each halving and the last one."""

    def __init__(self) -> None:
        super().__init__()
        from unimodal.tokenizers.nano.efficientnet import STAGES, load_pretrained

        self.network = load_pretrained()
        strides = [stride if index == 0 else 1 for _, _, count, stride, _ in STAGES for index in range(count)]
        outs = [out for _, out, count, _, _ in STAGES for _ in range(count)]
        self.taken = [n for n in range(len(outs)) if n + 1 == len(outs) or strides[n + 1] > 1]
        self.widths = tuple(outs[n] for n in self.taken)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        h = self.network.stem(x * (255 / 128) - (127 / 128)).clamp(0, 6)
        for number, block in enumerate(self.network.blocks):
            h = block(h)
            if number in self.taken:
                maps.append(h.flatten(2))
        return maps

    def read_patches(self, x: Tensor) -> Tensor:
        return self(x)[-1].transpose(1, 2)


class EncoderFeatures(FrozenFeatures):
    """A vision encoder that transformers has (DINOv2, SigLIP, CLIP, ViT), from a folder of its checkpoint. Pictures are
    resized to the size that it was trained at, and its class token is left out."""

    def __init__(self, folder: Path, layers: tuple[int, ...] | None = None):
        """layers: whose output is taken, counted from 0, the embedding before all layers; by default that of every
        quarter of them. Raises ValueError for a folder without such a network."""
        super().__init__()
        from transformers import AutoConfig, AutoImageProcessor, AutoModel

        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            network = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
            processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{folder} holds no vision encoder of transformers ({str(error).splitlines()[0]})"
            ) from None
        network = getattr(network, "vision_model", network)  # CLIP and SigLIP have a text half, too
        config = getattr(config, "vision_config", config)
        self.network = network.eval().requires_grad_(False)
        self.side, self.patch = int(config.image_size), int(config.patch_size)
        count = int(config.num_hidden_layers)
        self.layers = layers or tuple(round(count * quarter / 4) for quarter in range(5))
        self.widths = (int(config.hidden_size),) * len(self.layers)
        self.num_positions = (self.side // self.patch) ** 2
        for name, values in (("mean", processor.image_mean), ("std", processor.image_std)):
            self.register_buffer(name, torch.tensor(values).reshape(1, 3, 1, 1), persistent=False)

    def _run(self, x: Tensor) -> tuple[Tensor, ...]:
        size = (self.side, self.side)
        x = x if x.shape[-2:] == size else interpolate(x, size, mode="bicubic", antialias=True)
        x = (x - self.get_buffer("mean")) / self.get_buffer("std")
        hidden = self.network(pixel_values=x, output_hidden_states=True).hidden_states
        return tuple(state[:, -self.num_positions :] for state in hidden)  # each [B, L, C]

    def forward(self, x: Tensor) -> list[Tensor]:
        hidden = self._run(x)
        return [hidden[layer].transpose(1, 2) for layer in self.layers]

    def read_patches(self, x: Tensor) -> Tensor:
        return self._run(x)[-1]


def load_frozen(network: str) -> FrozenFeatures:
    """`efficientnet`, or the folder of a vision encoder. Raises ValueError for what is neither."""
    if network == PACKAGED:
        return EfficientNetFeatures()
    folder = Path(network).expanduser()
    if not folder.is_dir():
        raise ValueError(f"network {network!r} is no folder; name that of a vision encoder, or {PACKAGED!r}")
    return EncoderFeatures(folder)

"""How far two pictures are apart in the features of a frozen network.

`PerceptualLoss` compares maps whose vectors are scaled to length 1, as LPIPS does (Zhang et al., arXiv 1801.03924),
with equal weights for all channels, on the packaged EfficientNet-lite0 or an encoder of transformers: no download.
`Lpips` is the published measure, of weights that lie in a folder.

Shapes: B batch, H, W height and width, C channels, L positions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from unimodal.tokenizers.losses.frozen_features import FrozenFeatures

EPS = 1e-10
#: of VGG-16's features: (channels, convolutions) of each of the five slices, whose last output LPIPS compares
SLICES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
#: files of a folder with LPIPS weights: torchvision's VGG-16, and the weights of its channels (of the lpips package)
TRUNK_FILES, HEAD_FILES = ("vgg16-397923af.pth", "vgg16.pth"), ("vgg.pth", "vgg_lpips.pth", "lpips_vgg.pth")


def scale_to_one(h: Tensor) -> Tensor:
    """[B, C, L] → every position's vector scaled to length 1; the gradient is finite where a vector is 0."""
    return h / (h.square().sum(1, keepdim=True) + EPS).sqrt()


class PerceptualLoss(nn.Module):
    """The mean over maps of the squared distance of unit vectors, averaged over positions."""

    def __init__(self, features: FrozenFeatures):
        super().__init__()
        self.features = features

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        """made, real: [B, 3, H, W] in [0, 1] → scalar with a gradient to `made`."""
        with torch.no_grad():
            wanted = self.features(real)
        errors = [
            (scale_to_one(a) - scale_to_one(b)).square().sum(1).mean()
            for a, b in zip(self.features(made), wanted, strict=True)
        ]
        return torch.stack(errors).mean()


class Lpips(nn.Module):
    """LPIPS version 0.1 on VGG-16 (arXiv 1801.03924): weighted squared distances of unit vectors, averaged over places
    and added over five maps."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.ends: list[int] = []  # index of the last layer of each slice
        channels = 3
        for number, (width, count) in enumerate(SLICES):
            layers += [nn.MaxPool2d(2)] if number else []
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.ends.append(len(layers) - 1)
        self.trunk = nn.Sequential(*layers)
        self.heads = nn.ParameterList([torch.ones(width) / width for width, _ in SLICES])
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        return super().train(False)

    def read_maps(self, x: Tensor) -> list[Tensor]:
        """x: [B, 3, H, W] in [0, 1] → five maps [B, C, L]."""
        h = (x * 2 - 1 - self.get_buffer("shift")) / self.get_buffer("scale")
        maps = []
        for number, layer in enumerate(self.trunk):
            h = layer(h)
            if number in self.ends:
                maps.append(h.flatten(2))
        return maps

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        """made, real: [B, 3, H, W] in [0, 1] → the mean distance of the batch."""
        total = made.new_zeros(())
        for weights, a, b in zip(self.heads, self.read_maps(made), self.read_maps(real), strict=True):
            apart = (scale_to_one(a) - scale_to_one(b)).square()
            total = total + torch.einsum("bcl,c->bl", apart, weights).mean()
        return total

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The weights in a folder: torchvision's `vgg16-397923af.pth` and the lpips package's `vgg.pth`, read as bare
        tensors. Raises ValueError that names what is missing."""
        trunk, heads = (_read_weights(folder, names) for names in (TRUNK_FILES, HEAD_FILES))
        made = cls()
        convolutions = {str(n): layer for n, layer in enumerate(made.trunk) if isinstance(layer, nn.Conv2d)}
        try:
            with torch.no_grad():
                for name, layer in convolutions.items():
                    layer.weight.copy_(trunk[f"features.{name}.weight"])
                    assert layer.bias is not None
                    layer.bias.copy_(trunk[f"features.{name}.bias"])
                for number, weights in enumerate(made.heads):
                    weights.copy_(heads[f"lin{number}.model.1.weight"].flatten())
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{folder} does not hold the weights of LPIPS on VGG-16 ({error})") from None
        return made


def _read_weights(folder: Path, names: tuple[str, ...]) -> dict[str, Tensor]:
    for name in names:
        if (folder / name).is_file():
            weights: dict[str, Tensor] = torch.load(folder / name, map_location="cpu", weights_only=True)
            return weights
    raise ValueError(f"{folder} has no {names[0]}; put the weights of LPIPS on VGG-16 there, or use efficientnet")

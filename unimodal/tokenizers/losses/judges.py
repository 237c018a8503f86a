"""Discriminators of pictures: what they judge as real (high) or as decoded (low), piece by piece.

Shapes: B batch, H, W height and width, C channels, L positions, K judgements.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from unimodal.tokenizers.losses.frozen_features import FrozenFeatures

KERNEL = 9  # positions that a head of `FeatureJudge` sees


class PatchJudge(nn.Module):
    """PatchGAN (Isola et al., arXiv 1611.07004): convolutions that judge overlapping patches; with three layers each
    judgement sees 70×70 pixels."""

    def __init__(self, width: int = 64, num_layers: int = 3):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        channels = width
        for number in range(1, num_layers + 1):
            out = width * min(2**number, 8)
            stride = 2 if number < num_layers else 1
            layers += [nn.Conv2d(channels, out, 4, stride=stride, padding=1, bias=False), nn.BatchNorm2d(out)]
            layers += [nn.LeakyReLU(0.2)]
            channels = out
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 4, padding=1))
        self.smallest = 2**num_layers * 4  # pixels a side that leave something to judge
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1] → judgements [B, K]."""
        if min(x.shape[-2:]) < self.smallest:
            raise ValueError(
                f"the patch judge needs pictures of {self.smallest} pixels a side; got {x.shape[-2]}×{x.shape[-1]}: "
                "give it fewer layers"
            )
        return self.layers(x * 2 - 1).flatten(1)


class _LocalBatchNorm(nn.Module):
    """Batch norm over groups of 8 items, without running statistics (StyleGAN-T, arXiv 2301.09515)."""

    def __init__(self, channels: int, group: int = 8, eps: float = 1e-6):
        super().__init__()
        self.group, self.eps = group, eps
        self.weight, self.bias = nn.Parameter(torch.ones(channels, 1)), nn.Parameter(torch.zeros(channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        parts = [
            (part - part.mean((0, 2), keepdim=True))
            / (part.var((0, 2), keepdim=True, unbiased=False) + self.eps).sqrt()
            for part in x.float().chunk(math.ceil(len(x) / self.group))
        ]
        return torch.cat(parts) * self.weight + self.bias


class _FeatureHead(nn.Module):
    """A small judge of one map: 1×1, a residual of kernel 9, 1×1; its weights are spectrally normalised."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = self._make_block(channels, 1)
        self.second = self._make_block(channels, KERNEL)
        self.out = spectral_norm(nn.Conv1d(channels, 1, 1))

    @staticmethod
    def _make_block(channels: int, kernel: int) -> nn.Sequential:
        convolution = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, padding_mode="circular")
        return nn.Sequential(spectral_norm(convolution), _LocalBatchNorm(channels), nn.LeakyReLU(0.2))

    def forward(self, h: Tensor) -> Tensor:
        h = self.first(h)
        return self.out((self.second(h) + h) / math.sqrt(2)).flatten(1)


class FeatureJudge(nn.Module):
    """A judge over maps of a frozen network, a small head for each (StyleGAN-T, arXiv 2301.09515; as VAR and UniTok
    have it over DINO). Their augmentation of what is judged is left out."""

    def __init__(self, features: FrozenFeatures):
        super().__init__()
        self.features = features
        self.heads = nn.ModuleList(_FeatureHead(width) for width in features.widths)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1] → judgements [B, K], those of all maps beside each other."""
        maps = self.features(x)
        if min(h.shape[-1] for h in maps) < KERNEL // 2:
            raise ValueError(f"pictures of {x.shape[-2]}×{x.shape[-1]} are too small to judge by features; take patch")
        return torch.cat([head(h) for head, h in zip(self.heads, maps, strict=True)], dim=1)


class WaveJudge(nn.Module):
    """The judges of spectra and periods (UnivNet, HiFi-GAN) of `nano/audio_losses.py`, without feature matching."""

    def __init__(self) -> None:
        super().__init__()
        from unimodal.tokenizers.nano.audio_losses import WaveDiscriminator

        self.judges = WaveDiscriminator()

    def forward(self, x: Tensor) -> Tensor:
        """Sounds [B, 1, T] → judgements [B, K]."""
        return torch.cat([layers[-1].flatten(1) for layers in self.judges(x[:, 0])], dim=1)

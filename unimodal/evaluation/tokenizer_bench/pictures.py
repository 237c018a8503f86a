"""What a bench measures of pictures: each decoded one against its original, and sets of them against each other.

All tokenizers see the same pictures at their own size, and are judged at the one size S of the bench: what a smaller
tokenizer leaves out counts against it.

Shapes: B pictures of a batch, M of all, S side of a picture, N positions of codes, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from unimodal.evaluation.judges import compute_psnr, compute_ssim
from unimodal.evaluation.tokenizer_bench.inception import measure_inception_distance
from unimodal.evaluation.tokenizer_bench.picture_judges import (
    InceptionJudge,
    PictureJudge,
    measure_cosine,
    measure_frechet_distance,
    measure_kernel_distance,
)
from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.conditions import ConditionMaker
from unimodal.tokenizers.interface import Condition, MediaTokenizer
from unimodal.tokenizers.losses.frozen_features import EfficientNetFeatures
from unimodal.tokenizers.losses.perceptual import Lpips, scale_to_one

OCTAVES = 4
#: share of codes that are replaced, and how many of the nearest codes they are replaced by, before what is decoded is
#: judged as "perturbed" (RobusTok, arXiv 2503.08354)
PERTURBED_SHARE, PERTURBED_AMONG = 0.3, 10


@dataclass(frozen=True)
class Figure:
    """The mean of a measure over pictures, and half its 95% interval."""

    mean: float
    ci95: float

    @staticmethod
    def of(values: np.ndarray) -> Figure:
        spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        return Figure(round(float(values.mean()), 5), round(1.96 * spread / sqrt(len(values)), 5))


class PictureMeasures:
    """The measures of decoded pictures. lpips: the published network, where its weights are at hand."""

    def __init__(self, judges: Sequence[PictureJudge], lpips: Lpips | None = None) -> None:
        self.judges, self.lpips = judges, lpips
        self.maps = EfficientNetFeatures().to(memory_format=torch.channels_last)

    def describe_originals(self, real: Tensor) -> dict[str, np.ndarray]:
        """The features of originals [B, 3, S, S], by judge: arrays to keep."""
        return {f"features_{judge.name}": judge.extract(real).numpy() for judge in self.judges}

    def read_maps(self, real: Tensor) -> list[Tensor]:
        """The maps of originals that the perceptual distance compares, each [B, C, L]."""
        with torch.inference_mode():
            return [scale_to_one(part) for part in self.maps(real)]

    def compare(
        self, real: Tensor, made: Tensor, originals: Mapping[str, np.ndarray], maps: Sequence[Tensor]
    ) -> dict[str, np.ndarray]:
        """Measures [B] of decoded pictures, and their features by judge.

        real, made: [B, 3, S, S] in [0, 1]. originals, maps: what `describe_originals` and `read_maps` give.
        """
        with torch.inference_mode():
            found = {"psnr_db": compute_psnr(real, made), "ssim": compute_ssim(real, made)}
            found |= measure_octaves(real, made)
            found["perceptual_lite0"] = self._compare_maps(made, maps)
            if self.lpips is not None:
                found["lpips"] = torch.stack([self.lpips(b[None], a[None]) for a, b in zip(real, made, strict=True)])
            for judge in self.judges:
                name = f"features_{judge.name}"
                features = judge.extract(made)
                found[f"distance_{judge.name}"] = measure_cosine(torch.from_numpy(originals[name]), features)
                found[name] = features
        return {name: value.numpy() for name, value in found.items()}

    def _compare_maps(self, made: Tensor, maps: Sequence[Tensor]) -> Tensor:
        errors = [(scale_to_one(a) - b).square().sum(1).mean(-1) for a, b in zip(self.maps(made), maps, strict=True)]
        return torch.stack(errors).mean(0)


def measure_octaves(real: Tensor, made: Tensor) -> dict[str, Tensor]:
    """How well detail of each scale is kept: signal to noise in dB [B] of the bands of a Laplacian pyramid, from detail
    of one pixel up. 0 dB: the band might as well have been left out."""
    found = {}
    for octave in range(OCTAVES):
        if min(real.shape[-2:]) < 4:
            break
        smaller = [interpolate(x, scale_factor=0.5, mode="area") for x in (real, made)]
        bands = [
            x - interpolate(small, x.shape[-2:], mode="bilinear", align_corners=False)
            for x, small in zip((real, made), smaller, strict=True)
        ]
        power = bands[0].square().flatten(1).mean(1).clamp_min(1e-8)
        error = (bands[1] - bands[0]).square().flatten(1).mean(1).clamp_min(1e-8)
        found[f"detail_{2**octave}px_db"] = 10 * (power / error).log10()
        real, made = smaller
    return found


# ---- of a tokenizer


def make_condition(tokenizer: MediaTokenizer, side: str, texts: Sequence[str]) -> Condition | None:
    """What the tokenizer reads beside pictures, as far as a picture's file gives it: its text, or features of that.
    ValueError for more, and for pictures without a text."""
    wanted = tokenizer.encode_conditions if side == "encode" else tokenizer.decode_conditions
    if not wanted or not (wanted - tokenizer.optional_conditions or all(texts)):
        return None
    family = tokenizer.config.family
    if wanted - {"text", "features"}:
        raise ValueError(f"the {family} tokenizer reads {', '.join(sorted(wanted))} to {side}, which files of pictures "
                         "do not give; leave it out")  # fmt: skip
    if not all(texts):
        raise ValueError(f"the {family} tokenizer reads a text to {side}: write one in a .txt beside each file")
    maker = open_conditions(tokenizer)
    return maker.choose(maker.make_of_texts(texts, next(tokenizer.parameters()).device), wanted)


@lru_cache(maxsize=1)
def open_conditions(tokenizer: MediaTokenizer) -> ConditionMaker:
    """The text model of the tokenizer that is measured, read once."""
    return ConditionMaker(tokenizer)


def encode_pictures(tokenizer: MediaTokenizer, real: Tensor, texts: Sequence[str]) -> Codes:
    """Pictures [B, 3, S, S] at the tokenizer's own size → codes."""
    size = tokenizer.picture_size or (real.shape[2], real.shape[3])
    x = real if real.shape[-2:] == size else interpolate(real, size, mode="bicubic", antialias=True).clamp(0, 1)
    return tokenizer.encode(x, condition=make_condition(tokenizer, "encode", texts))


def decode_pictures(tokenizer: MediaTokenizer, codes: Codes, side: int, texts: Sequence[str]) -> Tensor:
    """Codes → pictures [B, 3, S, S] in [0, 1], at the bench's size."""
    made = tokenizer.decode(codes, condition=make_condition(tokenizer, "decode", texts)).float()
    if made.shape[-2:] != (side, side):
        made = interpolate(made, (side, side), mode="bicubic", antialias=True)
    return made.clamp(0, 1)


def list_rates(tokenizer: MediaTokenizer, num_positions: int) -> list[int]:
    """The numbers of codes that are decoded: all; of an ordered tokenizer also 1, 2, 4, … from its shortest prefix
    on."""
    if not tokenizer.ordered:
        return [num_positions]
    powers = [2**power for power in range(num_positions.bit_length()) if 2**power < num_positions]
    return [*(power for power in powers if power >= tokenizer.shortest_prefix), num_positions]


def keep_first(codes: Codes, count: int) -> Codes:
    """The first so many positions of every item."""
    whole = count >= codes.ids.shape[1]
    return codes if whole else Codes(codes.ids[:, :count], codes.mask[:, :count], None, codes.order)


def perturb_codes(tokenizer: MediaTokenizer, codes: Codes, generator: torch.Generator) -> Codes | None:
    """Codes of which a share is replaced by one of the nearest others; None where the codes have no vectors."""
    ids, at = codes.ids.clone(), 0
    free = codes.ids.shape[1] - sum(count or 0 for _, count in tokenizer.segments)
    for block, count in tokenizer.segments:
        place = slice(at, at + (free if count is None else count))
        at = place.stop
        for group in range(ids.shape[2]):
            table = tokenizer.code_features(block, group)
            if table is None:
                return None
            part = ids[:, place, group]
            known, back = part.unique(return_inverse=True)
            among = min(PERTURBED_AMONG, len(table) - 1)
            near = torch.cdist(table[known].float(), table.float()).topk(among + 1, largest=False).indices[:, 1:]
            drawn = near[back].gather(-1, torch.randint(among, (*part.shape, 1), generator=generator)).squeeze(-1)
            replaced = torch.rand(part.shape, generator=generator) < PERTURBED_SHARE
            ids[:, place, group] = torch.where(replaced, drawn, part)
    return Codes(ids.masked_fill(~codes.mask.unsqueeze(-1), 0), codes.mask, codes.grid, codes.order)


# ---- of all pictures


def summarise(
    measured: Mapping[str, np.ndarray], originals: Mapping[str, np.ndarray], judges: Sequence[PictureJudge]
) -> dict[str, object]:
    """The figures of decoded pictures: means of every measure [M], and distances of the two sets."""
    found: dict[str, object] = {}
    for name, values in measured.items():
        if not name.startswith("features_"):
            figure = Figure.of(values)
            found[name] = {"mean": figure.mean, "ci95": figure.ci95}
    for judge in judges:
        name = f"features_{judge.name}"
        real, made = torch.from_numpy(originals[name]), torch.from_numpy(measured[name])
        if len(real) > 1 and isinstance(judge, InceptionJudge):
            found["rfid"] = round(measure_inception_distance(real, made), 4)
        elif len(real) > 1:
            found[f"kid_like_{judge.name}"] = round(measure_kernel_distance(real, made), 5)
            found[f"rfid_like_{judge.name}"] = round(measure_frechet_distance(real, made), 4)
    return found

"""What a batch of media must be before it is encoded: finite floats, on the scale of the medium."""

from __future__ import annotations

from math import isfinite

import torch
from torch import Tensor

#: how far values of pictures and frames may lie outside [0, 1], as a resampled edge does
OVERSHOOT = 0.25
#: sounds may overshoot 1 a little; one far above holds integers, as in `unimodal.media.audio`
HIGHEST_PEAK = 16.0
ADVICE = {torch.uint8: "; x.float() / 255 of bytes", torch.int16: "; x.float() / 32768 of 16-bit samples"}


def check_floats(x: object, what: str = "encode takes a float tensor [B, C, …]") -> None:
    """ValueError for what is no tensor of floats."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{what}; got {type(x).__name__}")
    if not x.is_floating_point():
        raise ValueError(f"{what}; got {x.dtype}{ADVICE.get(x.dtype, '')}")


def check_scale(x: Tensor, modality: str) -> None:
    """ValueError for media [B, C, …] that are not finite, for pictures and frames on another scale than [0, 1], and for
    sounds whose samples are integers."""
    if x.is_meta or not x.numel():
        return
    lowest, highest = torch.stack(x.aminmax()).tolist()
    if not (isfinite(lowest) and isfinite(highest)):
        raise ValueError("the media hold numbers that are not finite; look for a division by 0 before encode")
    coloured = modality in ("image", "video") and x.dim() > 2 and x.shape[1] == 3  # not maps of features
    if coloured and not -OVERSHOOT <= lowest <= highest <= 1 + OVERSHOOT:
        advice = "(x + 1) / 2" if highest <= 1 + OVERSHOOT else "x / 255" if lowest >= 0 else "another scale"
        raise ValueError(f"pictures and frames are in [0, 1]; got {lowest:.4g} to {highest:.4g}: give {advice}")
    if modality == "audio" and max(-lowest, highest) > HIGHEST_PEAK:
        advice = "x / 32768" if max(-lowest, highest) <= 32768 else "another scale"
        raise ValueError(f"sounds are in [-1, 1]; got {lowest:.4g} to {highest:.4g}: give {advice}")

"""How far the decoded medium is from the real one, value by value.

Shapes: B batch, C channels, T samples or frames; "…" the axes behind.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: added to a mean squared error of values in [0, 1], whose root would else be steep where it is small: that of 40 dB
ROOT_EPS = 1e-4


def mask_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x: [B, C, T, …] with 0 past each item's length. lengths: int64 [B], or None where all is real."""
    if lengths is None:
        return x
    real = torch.arange(x.shape[2], device=x.device) < lengths.to(x.device)[:, None]  # [B, T]
    return x * real.reshape(len(x), 1, x.shape[2], *[1] * (x.dim() - 3))


def measure_l1(made: Tensor, real: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Mean absolute error of [B, C, …] over what is real, a scalar."""
    return _average((made - real).abs(), lengths)


def measure_l2(made: Tensor, real: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Mean squared error of [B, C, …] over what is real, a scalar."""
    return _average((made - real).square(), lengths)


def measure_root(made: Tensor, real: Tensor) -> Tensor:
    """The mean over items of the root of each one's mean squared error, [B, C, …] both, a scalar: it weighs items as
    decibels do, so that hard ones do not drown the rest."""
    return ((made - real).square().flatten(1).mean(1) + ROOT_EPS).sqrt().mean()


def _average(error: Tensor, lengths: Tensor | None) -> Tensor:
    if lengths is None:
        return error.mean()
    share = lengths.sum() / (len(error) * error.shape[2])
    return mask_padding(error, lengths).mean() / share.to(error.device)

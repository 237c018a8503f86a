"""Weights in 8 and 4 bits with a scale for each group of inputs.

Shapes: N outputs, K inputs, G groups of inputs, each of ``group``.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 32

# Shares of the largest weight of a group that are tried as its end of the 4-bit range.
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
# Weights that are quantised at a time: what is tried for them stays in the processor's cache.
_AT_ONCE = 1 << 18


def quantise_int8(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """weight [N, K] → int8 [N, K] and scales [N, G], which are float16 numbers, symmetric to ±127."""
    groups = weight.float().unflatten(1, (-1, group))  # [N, G, group]
    scales = (groups.abs().amax(2) / 127).half().float()
    whole = (groups / _avoid_zero(scales)[..., None]).round_().clamp_(-127, 127)
    return whole.to(torch.int8).flatten(1), scales


def quantise_int4(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """weight [N, K] → uint8 [N, K] from 0 to 15, of which 8 is zero, and scales [N, G], which are float16 numbers.

    The weight of largest size is at -8, as in llama.cpp's q4_0; of several scales the one of least squared error is
    taken, which q4_0 does not do.
    """
    rows = max(1, _AT_ONCE // weight.shape[1])
    parts = [_search_scales(part.float().unflatten(1, (-1, group))) for part in weight.split(rows)]
    return torch.cat([whole for whole, _ in parts]).flatten(1), torch.cat([scales for _, scales in parts])


def _search_scales(groups: Tensor) -> tuple[Tensor, Tensor]:
    """groups [N, G, group] → numbers from 0 to 15 and scales [N, G]."""
    at = groups.abs().argmax(2, keepdim=True)
    largest = groups.gather(2, at)[..., 0]  # [N, G], with its sign
    best = torch.full_like(largest, torch.inf)
    scales, whole = torch.zeros_like(largest), torch.full(groups.shape, 8, dtype=torch.uint8)
    for share in _SHARES:
        tried = (largest * share / -8).half().float()
        found = (groups / _avoid_zero(tried)[..., None]).round_().add_(8).clamp_(0, 15)
        error = ((found - 8).mul_(tried[..., None]).sub_(groups)).square_().sum(2)
        better = error < best
        best = torch.where(better, error, best)
        scales = torch.where(better, tried, scales)
        whole = torch.where(better[..., None], found.to(torch.uint8), whole)
    return whole, scales


def _avoid_zero(scales: Tensor) -> Tensor:
    return torch.where(scales == 0, torch.inf, scales)

"""Density peaks clustering with nearest neighbours (DPC-KNN, Du et al. 2016), of the tokens of a span.

A centre is dense, and far from all that is denser. Every other token belongs to the nearest centre.

Shapes: B spans, N tokens, M centres, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def find_density_peaks(states: Tensor, count: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """DPC-KNN on states [B, N, D] → centres int64 [B, M], ascending, and the cluster of every token int64 [B, N].

    neighbours: how many, itself included, make a token's density.
    """
    distance = torch.cdist(states, states) / states.shape[-1] ** 0.5
    num = distance.shape[1]
    near = distance.topk(min(neighbours, num), largest=False).values
    density = (-near.square().mean(-1)).exp()  # [B, N]
    density = density - torch.arange(num, device=states.device) * 1e-6  # of equal ones, the earlier is the denser
    denser = density[:, None] > density[..., None]  # [B, N, N]
    top = distance.amax((1, 2))[:, None]
    to_denser = distance.masked_fill(~denser, torch.inf).amin(-1)
    peak = torch.where(to_denser.isinf(), top, to_denser) * density
    centres = peak.argsort(dim=-1, descending=True, stable=True)[:, :count].sort(-1).values
    to_centres = distance.gather(1, centres[..., None].expand(-1, -1, num))  # [B, M, N]
    assigned = to_centres.argmin(1)
    own = torch.arange(count, device=states.device).expand_as(centres)
    return centres, assigned.scatter(1, centres, own)  # equal tokens may be centres: each its own

"""Splatting: a map of features that is the sum of Gaussians in the plane, each with features of its own (GPSToken,
arXiv 2509.01109). Everything has a gradient: place, shape and features.

Shapes: B batch, N Gaussians, C features, h and w rows and columns of the map.
"""

from __future__ import annotations

import torch
from torch import Tensor


def splat_gaussians(gaussians: Tensor, features: Tensor, size: tuple[int, int], reach: float) -> Tensor:
    """gaussians: float [B, N, 5], features: [B, N, C] → [B, C, h, w].

    A Gaussian is its deviations across and down, their correlation in (-1, 1), and its middle (x, y), on a plane whose
    corners' pixels lie at -1 and 1. Its peak is 1, and it ends at `reach` deviations.
    """
    height, width = size
    deviation_x, deviation_y, correlation, x, y = gaussians.float()[..., None, None].unbind(2)  # each [B, N, 1, 1]
    across = torch.linspace(-1, 1, width, device=gaussians.device) - x  # [B, N, 1, w]
    down = torch.linspace(-1, 1, height, device=gaussians.device)[:, None] - y  # [B, N, h, 1]
    u, v = across / deviation_x, down / deviation_y
    exponent = (u.square() - 2 * correlation * u * v + v.square()) / (2 * (1 - correlation.square()))
    weights = (-exponent).exp() * ((u.abs() <= reach) & (v.abs() <= reach))
    return torch.einsum("bnhw,bnc->bchw", weights, features.float())

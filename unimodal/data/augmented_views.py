"""Another view of a picture: turned, moved, scaled, recoloured."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """pixels: float [3, H, W] in [0, 1] → another view of it, the same shape; outside the picture is white."""

    def draw_uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    angle, scale = np.deg2rad(draw_uniform(-12, 12)), draw_uniform(0.9, 1.3)
    shift_x, shift_y = draw_uniform(-0.15, 0.15), draw_uniform(-0.15, 0.15)
    cos, sin = float(np.cos(angle)) * scale, float(np.sin(angle)) * scale
    theta = torch.tensor([[cos, -sin, shift_x], [sin, cos, shift_y]], dtype=torch.float32)
    grid = torch.nn.functional.affine_grid(theta[None], [1, 3, *pixels.shape[1:]], align_corners=False)
    x = 1 - torch.nn.functional.grid_sample(1 - pixels[None], grid, mode="bilinear", align_corners=False)[0]
    turn = draw_uniform(-0.5, 0.5)  # rotation of the colour circle about the grey axis, radians
    axis = torch.full((3,), 3**-0.5)
    cross = torch.tensor([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    rotation = np.cos(turn) * torch.eye(3) + np.sin(turn) * cross + (1 - np.cos(turn)) * torch.outer(axis, axis)
    x = torch.einsum("ij,jhw->ihw", rotation.float(), x)
    grey = x.mean(0, keepdim=True)
    x = grey + (x - grey) * (0.0 if draw_uniform(0, 1) < 0.05 else draw_uniform(0.6, 1.4))
    x = 1 - (1 - x) * draw_uniform(0.75, 1.2)
    if draw_uniform(0, 1) < 0.2:
        x = torch.nn.functional.avg_pool2d(x[None], 3, 1, 1, count_include_pad=False)[0]
    return x.clamp(0, 1)

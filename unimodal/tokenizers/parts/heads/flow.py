"""Rectified flow: a decoder that carries noise to data along straight lines (arXiv 2209.03003), with guidance.

Between data x at time 0 and noise at time 1 lies x_t = t · noise + (1 - t) · x; a network learns the velocity noise - x
there. Sampling walks from noise to data in few equal steps. The rule is that of minRF and FlexTok (arXiv 2502.13967).

Shapes: B batch; maps or pictures are [B, C, H, W], latents of a row [B, N, D].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Guidance = Literal["apg", "cfg"]
#: (x at a time [B, …], time [B]) → velocity [B, …]
Velocity = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class FlowStep:
    """What one step of training needs. noisy: x_t [B, …], time: [B], target: noise - x [B, …]."""

    noisy: Tensor
    time: Tensor
    target: Tensor

    def estimate(self, velocity: Tensor) -> Tensor:
        """The data that a velocity [B, …] points at."""
        return self.noisy - spread_time(self.time, velocity) * velocity


def spread_time(time: Tensor, like: Tensor) -> Tensor:
    """time [B] with as many dimensions as `like` has."""
    return time.reshape(-1, *[1] * (like.dim() - 1)).to(like)


def draw_flow_step(x: Tensor, generator: torch.Generator | None = None) -> FlowStep:
    """Noise and a logit-normal time (arXiv 2403.03206) for each item of x [B, …]."""
    noise = torch.randn(x.shape, generator=generator).to(x)
    time = torch.randn(len(x), generator=generator).sigmoid().to(x)
    t = spread_time(time, x)
    return FlowStep(t * noise + (1 - t) * x, time, noise - x)


class AdaptiveProjection:
    """Guidance that leaves saturated colours alone (APG, arXiv 2410.02416): the difference is kept within a norm, and
    only its part across the guided velocity counts. One object a sampling: it holds a running average of each item.

    momentum: of that average, negative to push away from the last steps. threshold: the largest norm of a difference.
    """

    def __init__(self, momentum: float = -0.5, threshold: float = 2.5):
        self.momentum, self.threshold = momentum, threshold
        self.average: Tensor | None = None

    def combine(self, guided: Tensor, free: Tensor, scale: float) -> Tensor:
        """Velocities [B, …] with and without the condition → the one to follow."""
        difference = guided - free
        if self.average is not None:
            difference = difference + self.momentum * self.average
        self.average = difference
        places = tuple(range(1, guided.dim()))
        norm = difference.norm(p=2, dim=places, keepdim=True)
        difference = difference * torch.minimum(torch.ones_like(norm), self.threshold / norm)
        along, across = guided.double(), difference.double()
        along = along / along.norm(p=2, dim=places, keepdim=True).clamp_min(1e-12)
        across = across - (across * along).sum(places, keepdim=True) * along
        return guided + (scale - 1) * across.to(guided)


def sample_flow(
    velocity: Velocity,
    noise: Tensor,
    steps: int,
    scale: float = 1.0,
    free_velocity: Velocity | None = None,
    guidance: Guidance = "cfg",
) -> Tensor:
    """noise [B, …] → data [B, …] in `steps` equal steps.

    scale: how far the velocity goes beyond free_velocity, that without the condition; 1 turns guidance off. guidance:
    "cfg" (classifier-free, arXiv 2207.12598) or "apg". ValueError for guidance without a free velocity.
    """
    if scale != 1 and free_velocity is None:
        raise ValueError("guidance needs the velocity without the condition")
    projection, x = AdaptiveProjection(), noise
    for step in range(steps, 0, -1):
        time = torch.full((len(noise),), step / steps, device=noise.device)
        direction = velocity(x, time)
        if scale != 1 and free_velocity is not None:
            free = free_velocity(x, time)
            if guidance == "apg":
                direction = projection.combine(direction, free, scale)
            else:
                direction = free + scale * (direction - free)
        x = x - direction / steps
    return x

"""Rectified flow whose time runs forward: noise at time 0, data at time 1, as codecs of sound have it.

Between noise and data x lies x_t = (1 - (1 - σ) t) · noise + t · x (arXiv 2210.02747, with a small σ); a network learns
the velocity x - (1 - σ) · noise there. `flow.py` has the flow whose time runs the other way.

Shapes: B batch, N frames, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from unimodal.tokenizers.parts.heads.flow import FlowStep, Velocity, spread_time


def draw_forward_step(x: Tensor, sigma: float, generator: torch.Generator | None = None) -> FlowStep:
    """Noise and a uniform time for each item of x [B, …]; the target is the velocity."""
    noise = torch.randn(x.shape, generator=generator).to(x)
    time = torch.rand(len(x), generator=generator).to(x)
    t = spread_time(time, x)
    return FlowStep((1 - (1 - sigma) * t) * noise + t * x, time, x - (1 - sigma) * noise)


def sample_forward(
    velocity: Velocity,
    noise: Tensor,
    steps: int,
    midpoints: bool = False,
    hold: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """noise [B, …] → data [B, …] in `steps` equal Euler steps.

    midpoints: read the velocity for the time in the middle of a step and not at its start (the place is that of its
    start in both). hold: (x, time [B]) → x, what is known of x at that time put in its place before each step.
    """
    x = noise
    for step in range(steps):
        time = torch.full((len(noise),), (step + 0.5 * midpoints) / steps, device=noise.device)
        x = x if hold is None else hold(x, time)
        x = x + velocity(x, time) / steps
    return x


def rescale_guided(guided: Tensor, plain: Tensor, share: float, whole_batch: bool = False) -> Tensor:
    """A guided velocity [B, …] mixed, by `share`, with itself at the spread of the one without guidance, against too
    strong contrasts (arXiv 2305.08891).

    The spread is the standard deviation of each item, or of the whole batch."""
    places = None if whole_batch else tuple(range(1, guided.dim()))
    wanted, found = (velocity.std(places, keepdim=True) for velocity in (plain, guided))
    scaled = torch.where(found > 1e-6, guided * (wanted / found.clamp_min(1e-6)), guided)
    return share * scaled + (1 - share) * guided

"""Features of a tokenizer made like those of a frozen network, place by place.

`CosineAlignment` is what GigaTok does with a decoder layer and DINOv2 (-cos); with a hidden projection it is REPA
(arXiv 2410.06940), whose projector has three layers with SiLU between.

Shapes: B batch, N, M positions of the two, D, K widths.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cosine_similarity, interpolate


class CosineAlignment(nn.Module):
    """-E[cos(projection(h), teacher)]. width: of the tokenizer's features, projected to that of the teacher by one
    layer, or by three of `hidden` units between."""

    def __init__(self, width: int, teacher_width: int, hidden: int | None = None):
        super().__init__()
        self.projection: nn.Module
        if hidden is None:
            self.projection = nn.Identity() if width == teacher_width else nn.Linear(width, teacher_width)
        else:
            layers = [nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()]
            self.projection = nn.Sequential(*layers, nn.Linear(hidden, teacher_width))

    def forward(self, features: Tensor, teacher: Tensor) -> Tensor:
        """features: [B, N, D], teacher: [B, M, K], both square maps in raster order → scalar in [-1, 1]."""
        return -cosine_similarity(self.projection(features), match_positions(teacher, features.shape[1]), dim=-1).mean()


def match_positions(teacher: Tensor, count: int) -> Tensor:
    """A square map [B, M, K] with `count` positions in place of M, averaged where they are fewer and interpolated where
    they are more. Raises ValueError where either is no square."""
    have = teacher.shape[1]
    if have == count:
        return teacher
    old, new = round(have**0.5), round(count**0.5)
    if old * old != have or new * new != count:
        raise ValueError(f"features of {count} positions cannot be compared with {have} of the network; give squares")
    square = teacher.transpose(1, 2).unflatten(2, (old, old))
    resized = adaptive_avg_pool2d(square, new) if new < old else interpolate(square, (new, new), mode="bilinear")
    return resized.flatten(2).transpose(1, 2)

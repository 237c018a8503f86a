"""Small changes of pictures that a search tries: random squares (Square Attack, arXiv 1912.00049), without a gradient.

Shapes: B pictures, H × W pixels in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SQUARES = (0.3, 0.05)  # share of the picture that the first and the last change cover


@dataclass
class SquareChanges:
    """Changes of pictures whose pixels differ by `most`, up or down, from the pictures' own; the same for one seed."""

    most: float
    generator: torch.Generator

    def draw_stripes(self, pictures: Tensor) -> Tensor:
        """A change in vertical stripes, [B, 3, H, W]."""
        return self.most * self._draw_signs(len(pictures), 3, 1, pictures.shape[3]).expand_as(pictures)

    def move_squares(self, change: Tensor, query: int, queries: int) -> Tensor:
        """The change [B, 3, H, W] with new signs in a square of each picture, smaller from query to query."""
        share = SQUARES[0] * (SQUARES[1] / SQUARES[0]) ** (query / max(queries - 1, 1))
        height, width = change.shape[2:]
        side = max(1, round((share * height * width) ** 0.5))
        changed = change.clone()
        tops = torch.randint(0, max(1, height - side + 1), (len(change),), generator=self.generator).tolist()
        lefts = torch.randint(0, max(1, width - side + 1), (len(change),), generator=self.generator).tolist()
        for one, top, left, signs in zip(changed, tops, lefts, self._draw_signs(len(change), 3, 1, 1), strict=True):
            one[:, top : top + side, left : left + side] = self.most * signs
        return changed

    def _draw_signs(self, *shape: int) -> Tensor:
        return torch.randint(0, 2, shape, generator=self.generator) * 2.0 - 1

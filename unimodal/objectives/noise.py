"""Noise over codes, as of discrete flow matching (arXiv 2407.15595): at level t each code is lost with probability t.

What is lost holds the mask, or by the share `wrong` of the cases a code drawn from all of its block.

Shapes: L codes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def add_noise(
    codes: Tensor, levels: Tensor, rows: range, mask_id: int, wrong: float, generator: torch.Generator
) -> Tensor:
    """Codes as rows of the vocabulary, int64 [L], and their noise levels, [L] → noisy codes. rows: the block's."""
    lost, mistaken = torch.rand(2, len(codes), generator=generator)
    drawn = torch.randint(rows.start, rows.stop, (len(codes),), generator=generator)
    noise = torch.where(mistaken < wrong, drawn, mask_id)
    return torch.where((lost < levels.cpu()).to(codes.device), noise.to(codes.device), codes)


def draw_logit_normal(num: int, generator: torch.Generator) -> Tensor:
    """Levels [num] in (0, 1): the logistic function of normal numbers."""
    return torch.randn(num, generator=generator).sigmoid()

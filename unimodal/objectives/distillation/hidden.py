"""A teacher's hidden states: the student's, mapped to the teacher's width, come near them (FitNets, arXiv 1412.6550).

The states that predict labelled tokens are compared block by block: student block i with the teacher's block at the
same part of its depth, or the last ones alone. The distance is the squared error over the mean square of the teacher's
states, so that blocks of large states weigh no more than others. Both means weigh each token by its medium.

Shapes: B rows, N tokens, P compared ones, D widths of the student, E of the teacher, L blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from unimodal.config import Config


class HiddenConfig(Config):
    blocks: Literal["last", "all"] = "all"
    weight: float = Field(default=1.0, gt=0)


def pair_blocks(num_student: int, num_teacher: int, which: str) -> list[tuple[int, int]]:
    """Blocks to compare, counted from 0: (the student's, the teacher's)."""
    pairs = [(i, round((i + 1) * num_teacher / num_student) - 1) for i in range(num_student)]
    return pairs[-1:] if which == "last" else [(i, max(0, j)) for i, j in pairs]


class HiddenMatch(nn.Module):
    """The maps from the student's states to the teacher's, one for each pair of blocks: trained, and not kept."""

    def __init__(self, cfg: HiddenConfig, num_student: int, num_teacher: int, width: int, other_width: int) -> None:
        super().__init__()
        self.pairs = pair_blocks(num_student, num_teacher, cfg.blocks)
        self.maps = nn.ModuleList(nn.Linear(width, other_width) for _ in self.pairs)
        with torch.no_grad():
            for one in self.maps:
                assert isinstance(one, nn.Linear)
                if width == other_width:  # a student of the same width begins where it stands
                    one.weight.copy_(torch.eye(width))
                nn.init.zeros_(one.bias)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], kept: Tensor, weights: Tensor) -> Tensor:
        """States of all blocks, each [B, N, D] and [B, N, E], the tokens to compare, int64 [P], and their weights, [P]
        → their distance."""
        terms = []
        for (mine, other), one in zip(self.pairs, self.maps, strict=True):
            wanted = teacher[other].flatten(0, 1)[kept].float()
            found = one(student[mine].flatten(0, 1)[kept].float())
            error, size = ((weights * x.square().mean(1)).sum() for x in (found - wanted, wanted))
            terms.append(error / size.clamp_min(1e-12))
        return torch.stack(terms).mean()

"""PyramidKV (arXiv 2406.02069): SnapKV with more entries in the lower layers and fewer in the higher ones.

Budgets fall evenly from layer to layer; the last layer has 1/beta of the mean, or more where the first layer cannot
hold what is left. As in kvpress, which states the authors' budgets by a share of the prompt, a prompt that is too short
for a pyramid gets the same budget in all layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unimodal.compression.kv.snapkv import SnapKV
from unimodal.compression.running.look import Look


@dataclass
class PyramidKV(SnapKV):
    """Keep what the last tokens of the prompt attend to, fewer in higher layers (PyramidKV, arXiv 2406.02069).

    scores [B, K, L]: those of SnapKV. beta: how many times fewer entries than the mean the last layer has.
    Raises ValueError for a beta below 1, and for what `SnapKV` refuses.
    """

    paper: ClassVar[str] = "PyramidKV, arXiv 2406.02069"

    beta: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta < 1:
            raise ValueError(f"beta is {self.beta}; give a number of at least 1")

    def count_kept(self, look: Look, scores: Tensor, num: Tensor) -> Tensor:
        """The budget of this layer, int64 [B]; the mean over layers is `keep` of num int64 [B]."""
        window = torch.full_like(num, self.window if self.scope == "prompt" else 0)
        mean = num * self.keep
        last = mean / self.beta
        first = torch.minimum(mean * 2 - last, num - window)
        last = torch.where(mean * 2 - last >= num - window, mean * 2 - first, last)
        step = (first - last) / max(look.num_layers - 1, 1)
        fits = (first >= last) & (last >= window)
        budget = torch.where(fits, (first - look.index * step).round().long(), mean.round().long())
        return budget.clamp(min=1)

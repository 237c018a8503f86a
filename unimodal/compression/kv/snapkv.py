"""SnapKV (arXiv 2404.14469): what the last tokens of the prompt attend to is what the answer will attend to.

The attention of an observation window at the end of the prompt is averaged, smoothed along the entries so that
neighbours of a peak stay with it, and averaged over the query heads of each key/value head; every head keeps its best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from unimodal.compression.kv.method import CacheCompressor
from unimodal.compression.running.look import Look


@dataclass
class SnapKV(CacheCompressor):
    """Keep what the last tokens of the prompt attend to (SnapKV, arXiv 2404.14469).

    scores [B, K, L]: the mean attention of the observation window, smoothed along the entries.
    window: number of queries in the observation window. kernel: number of entries that are smoothed over, odd. `recent`
    is at least 1. Raises ValueError for a window or kernel below 1, an even kernel, and what `CacheCompressor` refuses.
    """

    paper: ClassVar[str] = "SnapKV, arXiv 2404.14469"

    window: int = 64
    kernel: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"window {self.window} and kernel {self.kernel} must be at least 1, the kernel odd")
        self.recent = max(self.recent, 1)

    def score(self, look: Look) -> Tensor:
        return smooth_attention(look, look.attend_newest(min(self.window, look.query.shape[2])), self.kernel)


def smooth_attention(look: Look, probs: Tensor, kernel: int) -> Tensor:
    """The attention of a window [B, H, Q, L] → its mean, smoothed over `kernel` entries, [B, K, L]."""
    mean = look.average_groups(probs.mean(2))
    return F.avg_pool1d(mean, kernel, stride=1, padding=kernel // 2)

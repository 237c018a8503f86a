"""SnapKV (arXiv 2404.14469): what the last tokens of the prompt attend to is what the answer will attend to.

The attention of an observation window at the end of the prompt is averaged, smoothed along the entries so that
neighbours of a peak stay with it, and averaged over the query heads of each key/value head; every head keeps its best.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from unimodal.compression.kv.method import CacheCompressor, Look


@dataclass
class SnapKV(CacheCompressor):
    """window: queries that look back. kernel: entries that are smoothed over, an odd number."""

    window: int = 64
    kernel: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"window {self.window} and kernel {self.kernel} must be at least 1, the kernel odd")
        self.recent = max(self.recent, 1)

    def scores(self, look: Look) -> Tensor:
        return smoothed(look, look.rows(min(self.window, look.query.shape[2])), self.kernel)


def smoothed(look: Look, probs: Tensor, kernel: int) -> Tensor:
    """Attention of a window [B, H, Q, L] -> scores [B, K, L]."""
    mean = look.by_kv_head(probs.mean(2))
    return F.avg_pool1d(mean, kernel, stride=1, padding=kernel // 2)

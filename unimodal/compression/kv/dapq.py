"""DapQ (arXiv 2603.11564): pseudo-queries at the answer's positions; position matters more than content.

The observation window of SnapKV lies inside the prompt. Here the queries of the last tokens are rotated forward by the
window's length, to the positions that the answer's tokens will have, and score the entries from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unimodal.compression.kv.method import CacheCompressor
from unimodal.compression.kv.snapkv import smooth_attention
from unimodal.compression.running.look import Look
from unimodal.compression.running.rotation import rotate_by


@dataclass
class DapQ(CacheCompressor):
    """Keep what queries at the answer's positions would attend to (DapQ, arXiv 2603.11564).

    scores [B, K, L]: the mean attention of the pseudo-queries, smoothed along the entries.
    window: number of pseudo-queries. kernel: number of entries that are smoothed over, odd. Raises ValueError for a
    window or kernel below 1, an even kernel, and what `CacheCompressor` refuses.
    """

    paper: ClassVar[str] = "DapQ, arXiv 2603.11564"

    window: int = 32
    kernel: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"window {self.window} and kernel {self.kernel} must be at least 1, the kernel odd")

    def score(self, look: Look) -> Tensor:
        num = min(self.window, look.query.shape[2])
        return smooth_attention(look, look.attend(make_pseudo_queries(look, num)), self.kernel)


def make_pseudo_queries(look: Look, num: int) -> Tensor:
    """The newest `num` queries, each rotated forward by `num` positions, [B, H, num, W]."""
    query = look.query[:, :, -num:]
    return rotate_by(look.rotary, query, torch.full((len(query), 1, num), num, device=query.device))

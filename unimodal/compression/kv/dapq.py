"""DapQ (arXiv 2603.11564): pseudo-queries that stand where the answer will be; where matters more than what.

The observation window of SnapKV looks back from inside the prompt. Here the queries of the last tokens are rotated on
by the window's length, to the positions that the answer's tokens will have, and score the entries from there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unimodal.compression.kv.method import CacheCompressor, Look
from unimodal.compression.kv.snapkv import smoothed
from unimodal.compression.running.rotation import rotated_by


@dataclass
class DapQ(CacheCompressor):
    """window: pseudo-queries. kernel: entries that are smoothed over, an odd number."""

    window: int = 32
    kernel: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1 or self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"window {self.window} and kernel {self.kernel} must be at least 1, the kernel odd")

    def scores(self, look: Look) -> Tensor:
        num = min(self.window, look.query.shape[2])
        return smoothed(look, look.of(pseudo_queries(look, num)), self.kernel)


def pseudo_queries(look: Look, num: int) -> Tensor:
    """The newest `num` queries [B, H, num, W], each rotated on by `num` positions."""
    query = look.query[:, :, -num:]
    return rotated_by(look.rotary, query, torch.full((len(query), 1, num), num, device=query.device))

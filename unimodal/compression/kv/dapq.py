"""DapQ (arXiv 2603.11564): pseudo-queries at the answer's positions; position matters more than content.

The observation window of SnapKV lies inside the prompt. Here the queries of the last tokens are rotated forward by the
window's length, to the positions that the answer's tokens will have, and score the entries from there: all of the
prompt, its end included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unimodal.compression.kv.method import CacheCompressor
from unimodal.compression.kv.snapkv import smooth_attention
from unimodal.compression.method import check_odd, check_whole
from unimodal.compression.running.look import Look


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
        check_whole("window", self.window, 1)
        check_odd("kernel", self.kernel)

    def score(self, look: Look) -> Tensor:
        observes = look.find_window(self.window, is_behind_media=False)
        query = make_pseudo_queries(look, observes)
        last = torch.full(observes.shape, len(look.slots) - 1, device=query.device)  # behind the whole prompt
        inside = torch.zeros_like(observes[:, :0])
        return smooth_attention(look, look.attend(query, last), observes, self.kernel, inside)


def make_pseudo_queries(look: Look, observes: Tensor) -> Tensor:
    """The newest n queries, each rotated forward by the number of those that observe, bool [B, n]: [B, H, n, W]."""
    query = look.query[:, :, -observes.shape[1] :]
    offset = observes.sum(1)[:, None, None].expand(-1, 1, query.shape[2])
    return look.rotation.rotate_by(query, offset)

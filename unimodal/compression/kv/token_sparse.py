"""Token Sparse Attention (arXiv 2602.03216): within the prompt each head attends among its own tokens only.

In the later half of the layers, the last queries score the tokens for every query head. Queries, keys and values of the
best tokens and of the window are gathered, attended to densely and scattered back, so that a fused kernel runs on a
shorter sequence. The other tokens get nothing from this layer's attention and may be chosen by the next layer: nothing
is dropped, and steps behind the prompt attend to everything.

The authors choose how many tokens go by what they cover: the least attended ones whose smoothed attention, the mean
over heads, adds up to a share `coverage` of all, 0.005; but at least 1,024 tokens stay. That is
`TokenSparseAttention(scope="prompt", coverage=0.005, least=1024)`. Without `coverage` the share `keep` stays, so that
methods can be compared at one number of tokens. With the scope "media", words always take part, and the window ends at
the newest span, as in SnapKV. Which layers change the states least, and so may be sparse, the authors profile for each
model; by default it is the later half, as in their code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.compression.kv.method import Acts, CacheCompressor
from unimodal.compression.kv.snapkv import smooth_entries
from unimodal.compression.method import check_odd, check_share, check_whole
from unimodal.compression.running.look import Look


@dataclass
class TokenSparseAttention(CacheCompressor):
    """Attend within the prompt among each head's best tokens only (Token Sparse Attention, arXiv 2602.03216).

    scores [B, H, L]: the mean attention of the last queries, smoothed along the entries.
    window: number of last queries; they take part. kernel: number of entries that are smoothed over, odd. coverage: how
    much attention may be lost, instead of `keep`. least: at least so many entries take part, where `coverage` decides.
    layers: those that are sparse; by default the later half.
    Raises ValueError for a window or kernel below 1, an even kernel, a coverage outside [0, 1], and for what
    `CacheCompressor` refuses.
    """

    paper: ClassVar[str] = "Token Sparse Attention, arXiv 2602.03216"
    window: int = 128
    kernel: int = 7
    coverage: float | None = None
    least: int = 1
    layers: tuple[int, ...] | None = None
    acts: ClassVar[Acts] = "prefill"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("window", self.window, 1)
        check_whole("least", self.least, 1)
        check_odd("kernel", self.kernel)
        if self.coverage is not None:
            check_share("coverage", self.coverage)
        self.recent = max(self.recent, self.window if self.scope == "prompt" else 1)

    def is_active(self, look: Look) -> bool:
        return look.index >= look.num_layers // 2 if self.layers is None else look.index in self.layers

    def score(self, look: Look) -> Tensor:
        observes = look.find_window(self.window, self.scope == "media")
        weight = observes.float()
        probs = look.attend_newest(observes.shape[1])  # [B, H, Q, L]
        mean = (probs * weight[:, None, :, None]).sum(2) / weight.sum(1)[:, None, None]
        inside = F.pad(observes, (mean.shape[-1] - observes.shape[1], 0))[:, None]
        held = look.slots.valid[:, None]
        return smooth_entries(mean.masked_fill(inside, 0.0), held, self.kernel).masked_fill(inside, 0.0)

    def count_kept(self, look: Look, scores: Tensor, num: Tensor) -> Tensor:
        """The share `keep`, or all but the least attended entries that cover no more than `coverage`."""
        if self.coverage is None:
            return super().count_kept(look, scores, num)
        free = look.slots.evictable[:, 0] & look.slots.valid
        observes = look.find_window(self.window, self.scope == "media")
        inside = free & F.pad(observes, (free.shape[1] - observes.shape[1], 0))
        free = free & ~inside
        worth = scores.mean(1).masked_fill(~free, 0.0)  # [B, L]
        share = worth / worth.sum(1, keepdim=True).clamp_min(1e-8)
        covered = share.masked_fill(~free, torch.inf).sort(1).values.cumsum(1)
        gone = (covered < self.coverage).sum(1)  # [B]
        gone = torch.where(gone > 0, gone + 1, gone)
        before = free.sum(1)
        return torch.maximum(before - gone, before.clamp(max=self.least)) + inside.sum(1)

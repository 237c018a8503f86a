"""Token Sparse Attention (arXiv 2602.03216): within the prompt each head attends among its own tokens only.

The last queries score the tokens for every head. Queries, keys and values of the best are gathered, attended to densely
and scattered back, so that a fused kernel runs on a shorter sequence. The other tokens get nothing from this layer's
attention and may be chosen by the next layer: nothing is dropped, and steps behind the prompt attend to everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from unimodal.compression.kv.method import CacheCompressor
from unimodal.compression.running.look import Look


@dataclass
class TokenSparseAttention(CacheCompressor):
    """Attend within the prompt among each head's best tokens only (Token Sparse Attention, arXiv 2602.03216).

    scores [B, K, L]: the mean attention of the last queries.
    window: number of last queries. `recent` is at least 1. Raises ValueError for a window below 1, and for what
    `CacheCompressor` refuses.
    """

    paper: ClassVar[str] = "Token Sparse Attention, arXiv 2602.03216"
    window: int = 128
    acts: ClassVar[Literal["evict", "select", "prefill"]] = "prefill"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise ValueError(f"window is {self.window}; give at least 1")
        self.recent = max(self.recent, 1)

    def score(self, look: Look) -> Tensor:
        return look.average_groups(look.attend_newest(min(self.window, look.query.shape[2])).mean(2))

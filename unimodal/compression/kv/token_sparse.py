"""Token Sparse Attention (arXiv 2602.03216): within the prompt each head attends among its own tokens only.

The last queries score the tokens of every head; queries, keys and values of the best are gathered, attended densely
and scattered back, so that a fused kernel is used on a shorter sequence. The others pass this layer's attention by and
may be chosen by the next: nothing is dropped, and steps after the prompt attend to everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from unimodal.compression.kv.method import CacheCompressor, Look


@dataclass
class TokenSparseAttention(CacheCompressor):
    """window: last queries that score."""

    window: int = 128
    acts: ClassVar[Literal["evict", "select", "prefill"]] = "prefill"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise ValueError(f"window is {self.window}; give at least 1")
        self.recent = max(self.recent, 1)

    def scores(self, look: Look) -> Tensor:
        return look.by_kv_head(look.rows(min(self.window, look.query.shape[2])).mean(2))

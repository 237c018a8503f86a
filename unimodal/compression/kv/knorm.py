"""Key norms (arXiv 2406.11430): keys of a small norm are the ones that get attention; entries of large ones go.

The authors leave the first two layers whole in their experiments: `Knorm(skip=2)`. Norms are rounded, so that those of
a model that normalises its keys are equal, and not ordered by rounding errors; of equal ones the first stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from unimodal.compression.kv.method import CacheCompressor
from unimodal.compression.method import check_whole
from unimodal.compression.running.look import Look


@dataclass
class Knorm(CacheCompressor):
    """Keep the entries whose keys have the smallest norm (L2 norm strategy, arXiv 2406.11430).

    scores [B, K, L]: the negative norm of every key. skip: the first so many layers stay whole. Raises ValueError for a
    negative skip, and for what `CacheCompressor` refuses.
    """

    paper: ClassVar[str] = "L2 norm strategy, arXiv 2406.11430"

    skip: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("skip", self.skip, 0)

    def is_active(self, look: Look) -> bool:
        return look.index >= self.skip

    def score(self, look: Look) -> Tensor:
        return -look.keys.float().norm(dim=-1).round(decimals=4)

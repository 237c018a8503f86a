"""TOVA (arXiv 2401.06104): at every step the entries that the newest token attends to least go.

All heads of a layer drop the same entries, by the mean of their attention. The newest entry stays, as in kvpress; the
authors do not enforce that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from unimodal.compression.kv.method import CacheCompressor
from unimodal.compression.running.look import Look


@dataclass
class TOVA(CacheCompressor):
    """Keep what the newest token attends to (TOVA, arXiv 2401.06104).

    scores [B, K, L]: the attention of the newest token, the mean over all heads. Raises ValueError for what
    `CacheCompressor` refuses.
    """

    paper: ClassVar[str] = "TOVA, arXiv 2401.06104"

    recent: int = 1
    at_every_step: ClassVar[bool] = True

    def score(self, look: Look) -> Tensor:
        mean = look.attend_newest(1).mean(1)  # [B, 1, L]
        return mean.expand(-1, look.keys.shape[1], -1)

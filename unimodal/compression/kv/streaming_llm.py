"""StreamingLLM (arXiv 2309.17453): keep the first entries, to which heads attend when they have nothing to say, and the
newest.

As published the cache holds a fixed number of entries, and positions are counted within it:
`StreamingLLM(scope="prompt", positions="compacted")`. Here the number is a share of what was read, and entries go at
every step, so that the cache does not grow while an answer is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from unimodal.compression.kv.method import ALWAYS, CacheCompressor
from unimodal.compression.method import check_whole
from unimodal.compression.running.look import Look


@dataclass
class StreamingLLM(CacheCompressor):
    """Keep attention sinks and the newest entries (StreamingLLM, arXiv 2309.17453).

    scores [B, K, L]: the positions of the entries; no attention is looked at.
    sinks: entries at the first so many positions stay before all others. Raises ValueError for negative sinks, and for
    what `CacheCompressor` refuses.
    """

    paper: ClassVar[str] = "StreamingLLM, arXiv 2309.17453"

    sinks: int = 4
    at_every_step: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("sinks", self.sinks, 0)

    def score(self, look: Look) -> Tensor:
        scores = look.slots.positions.float().masked_fill(look.slots.find_first(self.sinks), ALWAYS)
        return scores.expand(-1, look.keys.shape[1], -1)

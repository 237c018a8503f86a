"""A quantized cache (KIVI, arXiv 2402.02750): entries are stored in 8, 4 or 2 bits.

Keys have outliers in a few channels, so that each channel has a scale of its own, over groups of consecutive entries;
values have none, and are scaled entry by entry. What is read is attended to as it is; it is stored in few bits behind
that, and what the model writes, with the next turn. Beside a method that evicts, what that leaves is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unimodal.compression.kv.method import Acts, CacheCompressor
from unimodal.compression.method import check_whole
from unimodal.compression.running.look import Look


@dataclass
class KIVI(CacheCompressor):
    """Store entries in a few bits (KIVI, arXiv 2402.02750).

    keep: the share of 16 bits that an entry keeps; 8, 4 or 2 bits, the most that fit. group: entries, or channels, that
    share a scale. recent: the newest so many entries stay exact. Raises ValueError for a group below 1,
    and for what `CacheCompressor` refuses.
    """

    paper: ClassVar[str] = "KIVI, arXiv 2402.02750"

    group: int = 32
    acts: ClassVar[Acts] = "store"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("group", self.group, 1)

    @property
    def packing(self) -> tuple[int, int]:
        return next((bits for bits in (8, 4) if bits <= self.keep * 16), 2), self.group

    def score(self, look: Look) -> Tensor:
        """1 for the entries that are stored in few bits, 0 for those that stay exact, [B, K, L]."""
        slots = look.slots
        recent = torch.full_like(slots.shift, self.recent)
        chosen = slots.evictable & slots.find_held() & ~slots.find_recent(recent)
        return chosen.expand(-1, look.keys.shape[1], -1).float()

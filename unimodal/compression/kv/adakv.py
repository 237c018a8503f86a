"""AdaKV (arXiv 2407.11550): the heads of a layer share one budget, by what their best entries are worth.

Heads with scattered attention need many entries, others few: entries are ranked over all heads of a layer together, and
each head keeps as many as it has among the first. A share of the budget stays with every head in any case. Which
entries those are, each head decides by SnapKV's scores. A layer stays one tensor here, as wide as its fullest head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unimodal.compression.kv.snapkv import SnapKV
from unimodal.compression.method import check_share
from unimodal.compression.running.look import Look


@dataclass
class AdaKV(SnapKV):
    """Keep what the last tokens attend to, with budgets that heads divide among them (AdaKV, arXiv 2407.11550).

    scores [B, K, L]: those of SnapKV. floor: the share of the mean budget that every head has in any case. safeguard:
    "mixed", the rest of the budget is divided (the authors' code, where the window is outside the budget's share);
    "least", all of it is, and the best entries of each head come first (kvpress).
    Raises ValueError for a floor outside [0, 1], an unknown safeguard, and for what `SnapKV` refuses.
    """

    paper: ClassVar[str] = "AdaKV, arXiv 2407.11550"

    floor: float = 0.2
    safeguard: Literal["mixed", "least"] = "mixed"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("floor", self.floor)
        if self.safeguard not in ("mixed", "least"):
            raise ValueError(f"safeguard {self.safeguard!r} is unknown; use mixed or least")

    def count_kept(self, look: Look, scores: Tensor, num: Tensor) -> Tensor:
        """The budget of every head, int64 [B, K]; their mean is the share `keep` of num int64 [B]."""
        kept = super().count_kept(look, scores, num)  # [B]
        recent = self.count_recent(kept)
        free = look.slots.evictable & look.slots.find_held()
        free = free.expand_as(scores)
        is_new = look.slots.find_recent(recent)
        if self.safeguard == "least":
            floor = (kept * self.floor).long().clamp(min=1 if self.floor else 0)
            worth = scores.float().masked_fill(is_new, torch.finfo(torch.float32).max).masked_fill(~free, -torch.inf)
            rank = worth.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
            worth = worth.masked_fill((rank < floor[:, None, None]) & free, torch.inf)
            return count_winners(worth, kept)
        inside = (free & is_new).sum(-1)  # [B, K]
        share = (kept - inside.amax(1)).clamp(min=0)  # [B]
        won = count_winners(scores.float().masked_fill(~free | is_new, -torch.inf), share)
        own = (won * (1 - self.floor) + (share * self.floor).long()[:, None]).round().long()
        return own + inside


def count_winners(worth: Tensor, share: Tensor) -> Tensor:
    """How many of each head's entries are among the best K times share int64 [B] of worth [B, K, L]: int64 [B, K]."""
    num_groups = worth.shape[1]
    flat = worth.flatten(1)
    rank = flat.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    wins = (rank < (share * num_groups)[:, None]) & ~flat.isneginf()
    return wins.view_as(worth).sum(-1)

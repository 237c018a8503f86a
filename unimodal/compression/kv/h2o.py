"""H2O (arXiv 2306.14048): keep heavy hitters, the entries with the most attention so far, and a recent window.

Attention is summed over all queries of the prompt and of the answer as it is written. Whenever there are more entries
than the budget, those with the least attention are dropped. Half of the budget is for the newest entries, as published;
where only media entries go (the scope "media") the newest entries are mostly words, which stay anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.compression.kv.method import CacheCompressor
from unimodal.compression.running.attention_rows import compute_attention_rows
from unimodal.compression.running.look import Look

QUERIES = 256  # rows of attention in memory at a time


@dataclass
class H2O(CacheCompressor):
    """Keep the entries that got the most attention so far (heavy hitters, H2O, arXiv 2306.14048).

    scores [B, K, L]: attention summed over all queries of the prompt and of every step behind it.
    recent_share, recent: the share of the budget, and the least number, of newest slots that stay before the heavy
    hitters. averages: divide the sum by the number of positions that see the entry, which else favours old ones (the
    "observed attention" of kvpress). Raises ValueError for what `CacheCompressor` refuses.
    """

    paper: ClassVar[str] = "H2O, arXiv 2306.14048"

    recent_share: float = 0.5
    averages: bool = False
    at_every_step: ClassVar[bool] = True

    def score(self, look: Look) -> Tensor:
        received = look.average_groups(sum_attention(look))  # [B, K, L]
        total = accumulate_scores(look, received)
        if not self.averages:
            return total
        positions = look.slots.positions
        return total / (positions[..., -1:] - positions + 1).clamp(min=1)


def accumulate_scores(look: Look, received: Tensor) -> Tensor:
    """What the entries received in this call [B, K, L], plus what they received before; remembered for the next."""
    state = look.state
    if state.score is not None and not look.first:
        received = received + F.pad(state.score, (0, received.shape[-1] - state.score.shape[-1]))
    state.score = received
    return received


def sum_attention(look: Look) -> Tensor:
    """The attention of all new tokens, summed, float32 [B, H, L]."""
    num = look.query.shape[2]
    at = look.find_newest(num)
    valid = look.slots.valid[:, -num:]
    total = torch.zeros((*look.query.shape[:2], look.keys.shape[2]), device=look.keys.device)
    for start in range(0, num, QUERIES):
        part = slice(start, start + QUERIES)
        probs = compute_attention_rows(look.query[:, :, part], look.keys, at[:, part], look.slots, look.rule)
        total += (probs * valid[:, None, part, None]).sum(2)
    return total

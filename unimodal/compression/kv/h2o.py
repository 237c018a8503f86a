"""H2O (arXiv 2306.14048): heavy hitters, the entries with the most attention so far, and a window of recent ones.

Attention is summed over all queries of the prompt and goes on being summed while the answer is written; whenever more
entries than the budget may go, those with the least go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.compression.kv.method import CacheCompressor, Look

QUERIES = 256  # attention rows in memory at a time


@dataclass
class H2O(CacheCompressor):
    """recent: newest entries that come before the heavy hitters."""

    recent: int = 8
    at_every_step: ClassVar[bool] = True

    def scores(self, look: Look) -> Tensor:
        received = look.by_kv_head(total_attention(look))  # [B, K, L]
        layer = look.layer
        if layer.score is not None and not look.first:
            received = received + F.pad(layer.score, (0, received.shape[-1] - layer.score.shape[-1]))
        layer.score = received
        return received


def total_attention(look: Look) -> Tensor:
    """The attention of all new tokens, summed: [B, H, L]."""
    from unimodal.compression.running.attention_rows import attention_rows

    num = look.query.shape[2]
    at = look.newest(num)
    valid = look.slots.valid[:, -num:]
    total = torch.zeros((*look.query.shape[:2], look.keys.shape[2]), device=look.keys.device)
    for start in range(0, num, QUERIES):
        part = slice(start, start + QUERIES)
        probs = attention_rows(look.query[:, :, part], look.keys, at[:, part], look.slots, look.scaling)
        total += (probs * valid[:, None, part, None]).sum(2)
    return total

"""TokenSelect (arXiv 2411.02886): nothing is dropped; each step attends to the entries that its heads vote for.

Each head's softmax over the entries is a vote, votes are summed over the heads, and all heads attend to the same
winners. Consecutive queries are alike: while a query's cosine with the one that chose last is at least `reuse`, that
choice is used again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.compression.kv.method import CacheCompressor, Look
from unimodal.compression.running.attention_rows import attention_logits


@dataclass
class TokenSelect(CacheCompressor):
    """reuse: cosine of queries from which the last choice is taken again; above 1 never."""

    reuse: float = 0.9
    acts: ClassVar[Literal["evict", "select", "prefill"]] = "select"

    def scores(self, look: Look) -> Tensor:
        votes = soft_votes(look)  # [B, L]
        asked = look.query.mean(2).flatten(1)  # [B, H * W]
        memory = look.layer.memory
        if "asked" in memory:
            again = F.cosine_similarity(asked, memory["asked"], dim=-1) >= self.reuse  # [B]
            old = F.pad(memory["votes"], (0, votes.shape[1] - memory["votes"].shape[1]))
            votes = torch.where(again[:, None], old, votes)
            asked = torch.where(again[:, None], memory["asked"], asked)
        memory.update(asked=asked, votes=votes)
        return votes[:, None].expand(-1, look.keys.shape[1], -1)


def soft_votes(look: Look) -> Tensor:
    """The softmax of every head's mean query over the valid entries, summed over heads: [B, L]."""
    logits = attention_logits(look.query.mean(2, keepdim=True), look.keys, look.scaling)[:, :, 0]  # [B, H, L]
    return (logits + look.slots.bias(torch.float32, logits.shape[1])).softmax(-1).sum(1)

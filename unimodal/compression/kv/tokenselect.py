"""TokenSelect (arXiv 2411.02886): nothing is dropped; each step attends to the entries that its heads vote for.

Each head's softmax over the entries is its vote. Votes are summed over the heads, and all heads attend to the same
winners. Consecutive queries are alike: while the cosine of a query with the one that chose last is at least `reuse`,
that choice is used again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.compression.kv.method import CacheCompressor
from unimodal.compression.running.attention_rows import compute_logits
from unimodal.compression.running.look import Look


@dataclass
class TokenSelect(CacheCompressor):
    """Attend at every step to the entries that the heads vote for together (TokenSelect, arXiv 2411.02886).

    scores [B, K, L]: the summed votes, the same for all heads; nothing is dropped.
    reuse: cosine of queries from which on the last choice is used again; above 1, it never is. Raises ValueError for
    what `CacheCompressor` refuses.
    """

    paper: ClassVar[str] = "TokenSelect, arXiv 2411.02886"
    reuse: float = 0.9
    acts: ClassVar[Literal["evict", "select", "prefill"]] = "select"

    def score(self, look: Look) -> Tensor:
        votes = count_votes(look)  # [B, L]
        asked = look.query.mean(2).flatten(1)  # [B, H * W]
        memory = look.layer.memory
        if "asked" in memory:
            again = F.cosine_similarity(asked, memory["asked"], dim=-1) >= self.reuse  # [B]
            old = F.pad(memory["votes"], (0, votes.shape[1] - memory["votes"].shape[1]))
            votes = torch.where(again[:, None], old, votes)
            asked = torch.where(again[:, None], memory["asked"], asked)
        memory.update(asked=asked, votes=votes)
        return votes[:, None].expand(-1, look.keys.shape[1], -1)


def count_votes(look: Look) -> Tensor:
    """The softmax of every head's mean query over the valid entries, summed over the heads, [B, L]."""
    logits = compute_logits(look.query.mean(2, keepdim=True), look.keys, look.scaling)[:, :, 0]  # [B, H, L]
    return (logits + look.slots.make_bias(torch.float32, logits.shape[1])).softmax(-1).sum(1)

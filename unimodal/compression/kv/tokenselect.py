"""TokenSelect (arXiv 2411.02886): nothing is dropped; each step attends to the entries that its heads vote for.

Each head's softmax over the candidates, of logits without the attention's factor, is its vote. Votes are summed over
the heads, and all heads attend to the same winners. Long prompts are read in chunks, each of which selects among the
entries before it by the mean of its queries. Consecutive queries are alike: while the cosine of a query with the one
that chose last is at least `reuse`, that choice is used again.

The authors read chunks of 512 tokens and always attend to the first 128 and the newest 512 entries beside the 2,048
winners: `TokenSelect(scope="prompt", sinks=128, recent=512, chunk=512)`, where `keep` takes the place of the number of
winners. Here chunks are counted from the end of the prompt, which makes a row of a batch what it is alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.compression.kv.method import ALWAYS, Acts, CacheCompressor
from unimodal.compression.method import check_whole
from unimodal.compression.running.attention_rows import AttentionRule, compute_logits
from unimodal.compression.running.look import Look


@dataclass
class TokenSelect(CacheCompressor):
    """Attend at every step to the entries that the heads vote for together (TokenSelect, arXiv 2411.02886).

    scores [B, K, L]: the summed votes, the same for all heads; nothing is dropped.
    reuse: cosine of queries from which on the last choice is used again; above 1, it never is. sinks: entries at the
    first so many positions are always attended to. chunk: tokens of a prompt that are read at a time; None: prompts
    are attended to in full. Raises ValueError for a chunk below 1, negative sinks, and for what `CacheCompressor`
    refuses.
    """

    paper: ClassVar[str] = "TokenSelect, arXiv 2411.02886"
    reuse: float = 0.9
    sinks: int = 0
    chunk: int | None = 512
    acts: ClassVar[Acts] = "select"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("sinks", self.sinks, 0)
        if self.chunk is not None:
            check_whole("chunk", self.chunk, 1)

    def score(self, look: Look) -> Tensor:
        slots, num = look.slots, look.query.shape[2]
        valid = slots.valid[:, -num:]
        always = slots.find_first(self.sinks)[:, 0]  # [B, L]
        if look.reads:
            always = always | F.pad(torch.ones_like(valid), (len(slots) - num, 0))  # the chunk itself
        weight = valid / valid.sum(1, keepdim=True).clamp(min=1)
        asked = (look.query * weight[:, None, :, None].to(look.query.dtype)).sum(2)  # [B, H, W]
        candidates = slots.evictable[:, 0] & slots.valid & ~always
        votes = count_votes(asked, look.keys, candidates)  # [B, L]
        memory, flat = look.state.memory, asked.flatten(1)
        if "asked" in memory:
            again = F.cosine_similarity(flat, memory["asked"], dim=-1) >= self.reuse  # [B]
            old = F.pad(memory["votes"], (0, votes.shape[1] - memory["votes"].shape[1]))
            votes = torch.where(again[:, None], old, votes)
            flat = torch.where(again[:, None], memory["asked"], flat)
        memory.update(asked=flat, votes=votes)
        return votes.masked_fill(always, ALWAYS)[:, None].expand(-1, look.keys.shape[1], -1)

    def count_chunk(self, num: int) -> int | None:
        return None if self.chunk is None else min(num, self.chunk)

    def count_kept(self, look: Look, scores: Tensor, num: Tensor) -> Tensor:
        """The share of the entries before the new tokens, and all entries of the new tokens."""
        inside = torch.zeros_like(num)
        if look.reads:
            count = look.query.shape[2]
            inside = (look.slots.evictable[:, 0, -count:] & look.slots.valid[:, -count:]).sum(1)
        return super().count_kept(look, scores, num - inside) + inside


def count_votes(asked: Tensor, keys: Tensor, candidates: Tensor) -> Tensor:
    """The softmax over the candidates, bool [B, L], of each head's query [B, H, W], summed over the heads: [B, L]."""
    logits = compute_logits(asked[:, :, None], keys, AttentionRule(1.0))[:, :, 0]  # [B, H, L]
    return logits.masked_fill(~candidates[:, None], -torch.inf).softmax(-1).nan_to_num(0.0).sum(1)

"""FASA (arXiv 2602.03152): a few rotary frequencies of a head tell which entries matter; attend to those in full.

A head's logit is a sum over rotary frequency pairs. For each head the pairs whose own logits rank the entries most like
the whole (the largest overlap of their best entries, over the last queries of the prompt) are its dominant ones. At
every step entries are scored by the dominant pairs alone, and the best are attended with all of them. The paper finds
the pairs once for a model; here they are found on each prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unimodal.compression.kv.method import CacheCompressor, Look
from unimodal.compression.running.attention_rows import attention_logits

QUERIES = 8  # of the prompt's end, which calibrate


@dataclass
class FASA(CacheCompressor):
    """num_pairs: dominant frequency pairs of a head."""

    num_pairs: int = 4
    acts: ClassVar[Literal["evict", "select", "prefill"]] = "select"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_pairs < 1:
            raise ValueError(f"num_pairs is {self.num_pairs}; give at least 1")

    def observe(self, look: Look) -> None:
        query = look.query[:, :, -QUERIES:]
        look.layer.memory["pairs"] = dominant_pairs(look, query, min(self.num_pairs, query.shape[-1] // 2), self.keep)

    def scores(self, look: Look) -> Tensor:
        pairs = look.layer.memory.get("pairs")
        if pairs is None:  # rows were taken away since the prompt: calibrate on this step
            pairs = dominant_pairs(look, look.query, min(self.num_pairs, look.query.shape[-1] // 2), self.keep)
        by_pair = pair_logits(look, look.query)  # [B, H, F, Q, L]
        chosen = pairs[:, :, :, None, None].expand(-1, -1, -1, *by_pair.shape[3:])
        scores = by_pair.gather(2, chosen).sum(2).mean(2)  # [B, H, L]
        return look.by_kv_head(scores)


def pair_logits(look: Look, query: Tensor) -> Tensor:
    """The part of every rotary frequency pair in the logits, [B, H, F, Q, L]; they sum to the logits."""
    keys = look.keys.repeat_interleave(query.shape[1] // look.keys.shape[1], 1)
    half = query.shape[-1] // 2
    q = torch.stack([query[..., :half], query[..., half:]], -1).permute(0, 1, 3, 2, 4)  # [B, H, F, Q, 2]
    k = torch.stack([keys[..., :half], keys[..., half:]], -1).permute(0, 1, 3, 2, 4)
    return q.float() @ k.float().transpose(-1, -2) * look.scaling


def dominant_pairs(look: Look, query: Tensor, num_pairs: int, keep: float) -> Tensor:
    """For every head the pairs that agree best with the whole about which entries are best, int64 [B, H, num_pairs]."""
    bias = look.slots.bias(torch.float32, query.shape[1])[:, :, None]  # [B, 1 or H, 1, L]
    free = (look.slots.evictable & look.slots.valid[:, None]).any(1)  # [B, L], where a choice is made
    bias = bias.masked_fill(~free[:, None, None], -torch.inf)
    count = free.sum(-1).mul(keep).round().clamp(min=1)[:, None, None, None]  # [B, 1, 1, 1]
    whole = _best(attention_logits(query, look.keys, look.scaling) + bias, count)  # [B, H, Q, L]
    own = _best(pair_logits(look, query) + bias[:, :, None], count[..., None])
    valid = look.slots.valid[:, None, -query.shape[2] :, None]
    agreement = (own & (whole & valid)[:, :, None]).flatten(3).sum(-1)  # [B, H, F]
    return agreement.argsort(dim=-1, descending=True, stable=True)[..., :num_pairs]


def _best(x: Tensor, count: Tensor) -> Tensor:
    """Which of x [..., L] are the `count` largest, bool [..., L], of equal ones the first; count broadcasts."""
    order = x.argsort(dim=-1, descending=True, stable=True)
    first = torch.arange(x.shape[-1], device=x.device) < count  # [..., L], places in the order
    return torch.zeros_like(x, dtype=torch.bool).scatter(-1, order, first.expand(x.shape))

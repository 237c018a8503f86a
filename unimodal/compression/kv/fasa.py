"""FASA (arXiv 2602.03152): a few rotary frequencies of a head tell which entries matter; attend to those in full.

A head's logit is a sum over rotary frequency pairs. The dominant pairs of a head are those whose own logits rank the
entries most like the whole sum does: their best entries overlap most, over the last queries of the prompt. At every
step entries are scored by the dominant pairs alone, and the best ones are attended to with all pairs. The paper finds
the dominant pairs once for a model; here they are found on each prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unimodal.compression.kv.method import CacheCompressor
from unimodal.compression.running.attention_rows import compute_logits
from unimodal.compression.running.look import Look

QUERIES = 8  # the last so many of the prompt find the dominant pairs


@dataclass
class FASA(CacheCompressor):
    """Attend at every step to the entries that a few rotary frequencies of a head rank best (FASA, arXiv 2602.03152).

    scores [B, K, L]: the logits of the dominant pairs alone; nothing is dropped.
    num_pairs: dominant pairs of each head. Raises ValueError for less than one, and for what `CacheCompressor` refuses.
    """

    paper: ClassVar[str] = "FASA, arXiv 2602.03152"
    num_pairs: int = 4
    acts: ClassVar[Literal["evict", "select", "prefill"]] = "select"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_pairs < 1:
            raise ValueError(f"num_pairs is {self.num_pairs}; give at least 1")

    def observe(self, look: Look) -> None:
        query = look.query[:, :, -QUERIES:]
        look.layer.memory["pairs"] = find_dominant_pairs(
            look, query, min(self.num_pairs, query.shape[-1] // 2), self.keep
        )

    def score(self, look: Look) -> Tensor:
        pairs = look.layer.memory.get("pairs")
        if pairs is None:  # rows were removed since the prompt: find the pairs at this step
            pairs = find_dominant_pairs(look, look.query, min(self.num_pairs, look.query.shape[-1] // 2), self.keep)
        by_pair = compute_pair_logits(look, look.query)  # [B, H, F, Q, L]
        chosen = pairs[:, :, :, None, None].expand(-1, -1, -1, *by_pair.shape[3:])
        scores = by_pair.gather(2, chosen).sum(2).mean(2)  # [B, H, L]
        return look.average_groups(scores)


def compute_pair_logits(look: Look, query: Tensor) -> Tensor:
    """The logits split by the F rotary frequency pairs, [B, H, F, Q, L]; their sum over F is the logits."""
    keys = look.keys.repeat_interleave(query.shape[1] // look.keys.shape[1], 1)
    half = query.shape[-1] // 2
    q = torch.stack([query[..., :half], query[..., half:]], -1).permute(0, 1, 3, 2, 4)  # [B, H, F, Q, 2]
    k = torch.stack([keys[..., :half], keys[..., half:]], -1).permute(0, 1, 3, 2, 4)
    return q.float() @ k.float().transpose(-1, -2) * look.scaling


def find_dominant_pairs(look: Look, query: Tensor, num_pairs: int, keep: float) -> Tensor:
    """The pairs of every head that agree most with all pairs about which entries are best, int64 [B, H, num_pairs].

    query: [B, H, Q, W]. keep: the share of the entries that count as best.
    """
    bias = look.slots.make_bias(torch.float32, query.shape[1])[:, :, None]  # [B, 1 or H, 1, L]
    free = (look.slots.evictable & look.slots.valid[:, None]).any(1)  # [B, L], where a choice is made
    bias = bias.masked_fill(~free[:, None, None], -torch.inf)
    count = free.sum(-1).mul(keep).round().clamp(min=1)[:, None, None, None]  # [B, 1, 1, 1]
    whole = _mark_best(compute_logits(query, look.keys, look.scaling) + bias, count)  # [B, H, Q, L]
    own = _mark_best(compute_pair_logits(look, query) + bias[:, :, None], count[..., None])
    valid = look.slots.valid[:, None, -query.shape[2] :, None]
    agreement = (own & (whole & valid)[:, :, None]).flatten(3).sum(-1)  # [B, H, F]
    return agreement.argsort(dim=-1, descending=True, stable=True)[..., :num_pairs]


def _mark_best(x: Tensor, count: Tensor) -> Tensor:
    """Whether each of x [..., L] is among the `count` largest, bool [..., L]; of equal ones the first count.

    count: int64, broadcast against x.
    """
    order = x.argsort(dim=-1, descending=True, stable=True)
    first = torch.arange(x.shape[-1], device=x.device) < count  # [..., L], places in the order
    return torch.zeros_like(x, dtype=torch.bool).scatter(-1, order, first.expand(x.shape))

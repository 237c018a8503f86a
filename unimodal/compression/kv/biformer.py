"""Bi-level routing attention (BiFormer, arXiv 2303.08810): regions choose regions, and tokens attend within those.

The authors cut a picture into squares; each square's mean query picks the squares whose mean keys are most like it, and
its tokens attend to all tokens of those. Here a region is a stretch of `region` positions; as queries the regions of a
prompt are counted from its end and always attend to themselves, and a step of the answer is a region of one token.
Every key/value head routes for itself, by the mean of its queries; the authors route once for all heads. Attention
within the prompt is as causal as the decoder's. BiFormer's local convolution of the values is a learned part of its own
network, a trunk of an encoder, and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.compression.kv.method import ALWAYS, Acts, CacheCompressor
from unimodal.compression.method import check_whole
from unimodal.compression.running.look import Look


@dataclass
class BiFormer(CacheCompressor):
    """Attend to the regions that are most like one's own (bi-level routing attention, BiFormer, arXiv 2303.08810).

    scores [B, K, L]: the products of mean query and mean keys of the regions; nothing is dropped. region: tokens in a
    region. Raises ValueError for a region below 1, and for what `CacheCompressor` refuses.
    """

    paper: ClassVar[str] = "BiFormer, arXiv 2303.08810"
    region: int = 8
    acts: ClassVar[Acts] = "select"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("region", self.region, 1)

    def score(self, look: Look) -> Tensor:
        slots, num = look.slots, look.query.shape[2]
        valid = slots.valid[:, -num:]
        weight = (valid / valid.sum(1, keepdim=True).clamp(min=1))[:, None, :, None]
        asked = look.average_groups((look.query.float() * weight).sum(2))  # [B, K, W]
        held = slots.find_held()
        number = (slots.positions - slots.first_position) // self.region  # counted from a row's first entry
        scores = score_regions(asked, look.keys, held, number)
        if not look.reads:
            return scores
        inside = F.pad(torch.ones_like(valid), (len(slots) - num, 0))[:, None]
        return scores.masked_fill(inside, ALWAYS)

    def count_chunk(self, num: int) -> int | None:
        return min(num, self.region)

    def count_kept(self, look: Look, scores: Tensor, num: Tensor) -> Tensor:
        """The share of the entries before the new tokens, in whole regions, and all entries of the new tokens."""
        inside = torch.zeros_like(num)
        if look.reads:
            count = look.query.shape[2]
            inside = (look.slots.evictable[:, 0, -count:] & look.slots.valid[:, -count:]).sum(1)
        kept = super().count_kept(look, scores, num - inside)
        whole = (kept / self.region).round().long().clamp(min=1) * self.region if self.region > 1 else kept
        return torch.minimum(whole, num - inside) + inside


def score_regions(asked: Tensor, keys: Tensor, held: Tensor, number: Tensor) -> Tensor:
    """The product of queries [B, K, W] with the mean key of each entry's region, float32 [B, K, L].

    keys: [B, K, L, W]. held: bool [B, K or 1, L], the entries that there are. number: int64 [B, K or 1, L], the region
    of each.
    """
    shape = keys.shape[:3]
    held, number = held.expand(shape), number.clamp(min=0).expand(shape)
    means = keys.new_zeros((*shape[:2], int(number.max()) + 1, keys.shape[3]), dtype=torch.float32)
    counts = means.new_zeros(means.shape[:3]).scatter_add_(2, number, held.float())
    means.scatter_add_(2, number[..., None].expand_as(keys), keys.float() * held[..., None])
    means = means / counts.clamp(min=1)[..., None]
    return (means @ asked[..., None]).squeeze(-1).gather(2, number)

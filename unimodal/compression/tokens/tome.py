"""Token merging (ToMe, arXiv 2210.09461): bipartite soft matching between tokens at even and at odd places.

Every token at an even place is tied to the most similar one at an odd place; the strongest ties are merged into
size-weighted means, round after round until enough tokens are gone (a round merges at most half of them). A merged
token counts for its size in the attention (log(size) is added over keys).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unimodal.compression.method import Compressor
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.choosing import compute_cosines


@dataclass
class ToMe(Compressor):
    """Merge the most similar pairs of tokens (ToMe, arXiv 2210.09461).

    hidden [B, N, D] → `span.count` size-weighted means with their sizes.
    layer: the site; 0 compares embeddings, k the states before layer k. Raises ValueError on entering for a layer that
    the model lacks, and for what `Method` refuses.
    """

    paper: ClassVar[str] = "ToMe, arXiv 2210.09461"

    layer: int = 0

    def find_sites(self, num_layers: int) -> tuple[int, ...]:
        return (self.layer,)

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        num_rows, num, _ = hidden.shape
        belongs = torch.eye(num, device=hidden.device).expand(num_rows, -1, -1) * span.sizes[:, None]  # [B, n, N]
        index = torch.arange(num, device=hidden.device).expand(num_rows, -1)  # [B, n], representatives
        while index.shape[1] > span.count:
            sizes = belongs.sum(-1, keepdim=True)
            states = (belongs / sizes) @ hidden.float()
            belongs, index = merge_pairs(states, belongs, index, index.shape[1] - span.count)
        sizes = belongs.sum(-1)
        return Plan(index, belongs / sizes[..., None], sizes=sizes)


def merge_pairs(states: Tensor, belongs: Tensor, index: Tensor, surplus: int) -> tuple[Tensor, Tensor]:
    """One round of merging, which takes up to `surplus` of n representatives away.

    states: [B, n, D]. belongs: [B, n, N], the size with which each token belongs to each representative. index: int64
    [B, n], their places. Gives the last two with fewer rows.
    """
    similar = compute_cosines(states[:, ::2], states[:, 1::2])  # [B, even, odd]
    strength, partner = similar.max(-1)
    num_merged = min(surplus, similar.shape[1], states.shape[1] // 2)
    order = strength.argsort(dim=-1, descending=True, stable=True)
    gone, stay = order[:, :num_merged], order[:, num_merged:]
    even, odd = belongs[:, ::2], belongs[:, 1::2]
    target = partner.gather(1, gone)[..., None].expand(-1, -1, even.shape[-1])
    taken = even.gather(1, gone[..., None].expand_as(target))
    odd = odd.scatter_add(1, target, taken)
    left = even.gather(1, stay[..., None].expand(-1, -1, even.shape[-1]))
    index = torch.cat([index[:, ::2].gather(1, stay), index[:, 1::2]], 1)
    index, place = index.sort(-1)
    belongs = torch.cat([left, odd], 1).gather(1, place[..., None].expand(-1, -1, even.shape[-1]))
    return belongs, index

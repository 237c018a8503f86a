"""Token merging (ToMe, arXiv 2210.09461): bipartite soft matching between tokens of even and of odd places.

Every even token is tied to its most similar odd one; the r strongest ties are merged into size-weighted means, round
after round until enough tokens are gone (a round merges at most half of them). A merged token counts for its size in
the attention (log of the size added over keys).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unimodal.compression.method import Compressor, Plan, Span
from unimodal.compression.tokens.choosing import cosine


@dataclass
class ToMe(Compressor):
    """Merge the most similar pairs. layer: the site; 0 compares embeddings, k the states before layer k."""

    layer: int = 0

    def layers(self, num_layers: int) -> tuple[int, ...]:
        return (self.layer,)

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        num_rows, num, _ = hidden.shape
        belongs = torch.eye(num, device=hidden.device).expand(num_rows, -1, -1) * span.sizes[:, None]  # [B, n, N]
        index = torch.arange(num, device=hidden.device).expand(num_rows, -1)  # [B, n], representatives
        while index.shape[1] > span.count:
            sizes = belongs.sum(-1, keepdim=True)
            states = (belongs / sizes) @ hidden.float()
            belongs, index = merged_pairs(states, belongs, index, index.shape[1] - span.count)
        sizes = belongs.sum(-1)
        return Plan(index, belongs / sizes[..., None], sizes=sizes)


def merged_pairs(states: Tensor, belongs: Tensor, index: Tensor, surplus: int) -> tuple[Tensor, Tensor]:
    """One round: states [B, n, D], belongs [B, n, N], index [B, n] -> the last two with up to `surplus` rows fewer."""
    similar = cosine(states[:, ::2], states[:, 1::2])  # [B, even, odd]
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

"""Token merging (ToMe, arXiv 2210.09461): bipartite soft matching between tokens at even and at odd places.

Every token at an even place is tied to the most similar one at an odd place; the strongest ties are merged into
size-weighted means, round after round until enough tokens are gone (a round merges at most half of them). Behind a
round the tokens that were not merged, in the order of their ties, stand before those at odd places, as in the authors'
code. A merged token counts for its size in the attention (log(size) is added over keys).

The authors merge in every layer of an encoder and compare the keys of its attention. That is
`ToMe(metric="keys", every_layer=True)`, where keys are compared without their rotary positions, which an encoder does
not have. By default the states are compared once, before the decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unimodal.compression.method import Compressor, check_whole
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.choosing import compute_cosines
from unimodal.compression.tokens.stages import count_linearly


@dataclass
class ToMe(Compressor):
    """Merge the most similar pairs of tokens (ToMe, arXiv 2210.09461).

    hidden [B, N, D] → `span.count` size-weighted means with their sizes.
    layer: the site, or the first; 0 compares embeddings, k the states before layer k. By default 0, and 1 for keys.
    metric: what is compared, "states" or the "keys" of the layer before the site. every_layer: from `layer` on every
    layer merges, as many tokens each. Raises ValueError for another metric, for keys before layer 1, on entering for a
    layer that the model lacks, and for what `Method` refuses.
    """

    paper: ClassVar[str] = "ToMe, arXiv 2210.09461"
    judges_rows: ClassVar[bool] = True

    layer: int | None = None
    metric: Literal["states", "keys"] = "states"
    every_layer: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.metric not in ("states", "keys"):
            raise ValueError(f"metric {self.metric!r} is unknown; use states or keys")
        check_whole("layer", self.first, 1 if self.metric == "keys" else 0)

    @property
    def first(self) -> int:
        """The first site."""
        return int(self.metric == "keys") if self.layer is None else self.layer

    def find_sites(self, num_layers: int) -> tuple[int, ...]:
        return tuple(range(self.first, num_layers)) if self.every_layer and self.first < num_layers else (self.first,)

    def find_watched_layers(self, num_layers: int) -> tuple[int, ...]:
        return tuple(site - 1 for site in self.find_sites(num_layers)) if self.metric == "keys" else ()

    def count_kept(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        """The share `keep` at the last site, and before it in proportion to the sites that are done."""
        return count_linearly(spans, self.find_sites(num_layers), self.keep)

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        compared = span.measure_keys() if self.metric == "keys" else hidden
        belongs, index = merge_tokens(compared, span.sizes, span.count)
        sizes = belongs.sum(-1)
        return Plan(index, belongs / sizes[..., None], sizes=sizes)


def merge_tokens(compared: Tensor, sizes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Merge N tokens to M = `count` by what is compared of them [B, N, D], weighted by their sizes [B, N].

    Gives belongs [B, M, N], the size with which each token belongs to each representative, and the places of the
    representatives, int64 [B, M], ascending.
    """
    num_rows, num, _ = compared.shape
    belongs = torch.eye(num, device=compared.device).expand(num_rows, -1, -1) * sizes[:, None]  # [B, n, N]
    index = torch.arange(num, device=compared.device).expand(num_rows, -1)  # [B, n]
    while index.shape[1] > count:
        means = (belongs / belongs.sum(-1, keepdim=True)) @ compared.float()
        belongs, index = merge_pairs(means, belongs, index, index.shape[1] - count)
    index, place = index.sort(-1)
    return belongs.gather(1, place[..., None].expand(-1, -1, num)), index


def merge_pairs(states: Tensor, belongs: Tensor, index: Tensor, surplus: int) -> tuple[Tensor, Tensor]:
    """One round of merging, which takes up to `surplus` of n representatives away, at most half of them.

    states: [B, n, D]. belongs: [B, n, N]. index: int64 [B, n], their places. Gives the last two with fewer rows: the
    even ones that are left, by the strength of their ties, and behind them the odd ones.
    """
    similar = compute_cosines(states[:, ::2], states[:, 1::2])  # [B, even, odd]
    strength, partner = similar.max(-1)
    num_merged = min(surplus, states.shape[1] // 2)
    order = strength.argsort(dim=-1, descending=True, stable=True)
    gone, stay = order[:, :num_merged], order[:, num_merged:]
    even, odd = belongs[:, ::2], belongs[:, 1::2]
    target = partner.gather(1, gone)[..., None].expand(-1, -1, even.shape[-1])
    taken = even.gather(1, gone[..., None].expand_as(target))
    odd = odd.scatter_add(1, target, taken)
    left = even.gather(1, stay[..., None].expand(-1, -1, even.shape[-1]))
    return torch.cat([left, odd], 1), torch.cat([index[:, ::2].gather(1, stay), index[:, 1::2]], 1)

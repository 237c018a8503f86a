"""k-means cross-attention (kMaX-DeepLab, arXiv 2207.04044) as a token clusterer.

The authors' queries are cluster centres: each token goes to the one centre that it is most like, an argmax over the
centres where attention has a softmax over the tokens, and a centre becomes what its tokens add up to. Their masks are
the clusters. Here the centres begin as tokens at even distances, where the paper has learned queries, tokens and
centres are compared by their cosine as they are, where it has learned projections and batch norms, and a centre is the
mean of its tokens. It does so as often as the paper has cross-attentions, 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unimodal.compression.method import Compressor, check_whole
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.choosing import compute_cosines, merge_clusters
from unimodal.compression.tokens.stride import choose_evenly


@dataclass
class KMaX(Compressor):
    """Cluster tokens by k-means cross-attention, and keep the means (kMaX-DeepLab, arXiv 2207.04044).

    hidden [B, N, D] → `span.count` means of clusters with their sizes. iterations: of the cross-attention. Raises
    ValueError for less than one, and for what `Method` refuses.
    """

    paper: ClassVar[str] = "kMaX-DeepLab, arXiv 2207.04044"

    iterations: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("iterations", self.iterations, 1)

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        index = choose_evenly(len(span), span.count, hidden)
        centres = hidden.float().gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))
        own = torch.arange(span.count, device=hidden.device).expand_as(index)
        for _ in range(self.iterations):
            # a centre keeps the token that it began with, so that none is empty
            assigned = compute_cosines(hidden, centres).argmax(-1).scatter(1, index, own)
            merge, sizes = merge_clusters(assigned, span.count, span.sizes)
            centres = merge @ hidden.float()
        return Plan(index, merge, sizes=sizes)

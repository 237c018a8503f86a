"""Token clustering and reconstruction (arXiv 2210.01035): a span is short in the middle layers, and whole behind them.

Clusters begin as a coarse raster of means. Every token shares itself out over the clusters around its own by its
squared distance to them, and a cluster becomes the mean of what it is given, as superpixels are found. The layers in
between see the clusters. Behind them each token is made anew from the clusters that were nearest to it, weighted by the
distance that they had then: a token reconstruction without weights of its own, for tasks that need every place. The
weights sum to 1, as in the paper; the authors' code scales their squares to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unimodal.compression.method import Compressor, check_share, check_whole
from unimodal.compression.plan import Plan, Return, Span
from unimodal.compression.tokens.grids import allot, average_line, find_grid, find_raster, map_runs


@dataclass
class TokenClustering(Compressor):
    """Cluster neighbouring tokens for the middle layers, and make all of them anew (token clustering, arXiv
    2210.01035).

    hidden [B, N, D] → `span.count` means of clusters, from `cluster_at` to `rebuild_at` of the depth, both shares in
    [0, 1]; N tokens behind that. iterations: of the clustering. temperature: the factor of the squared distance in the
    exponent of a share; above 0. reach: how many clusters away from its own a token may go. nearest: clusters of which
    a token is made. Raises ValueError for shares, a temperature or numbers out of range, and for what `Method` refuses.
    """

    paper: ClassVar[str] = "Token clustering, arXiv 2210.01035"

    cluster_at: float = 0.25
    rebuild_at: float = 0.75
    iterations: int = 5
    temperature: float = 0.05
    reach: int = 3
    nearest: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("cluster_at", self.cluster_at)
        check_share("rebuild_at", self.rebuild_at)
        for name, least in (("iterations", 1), ("reach", 0), ("nearest", 1)):
            check_whole(name, vars(self)[name], least)
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}; give a number above 0")

    def find_sites(self, num_layers: int) -> tuple[int, ...]:
        return (min(round(self.cluster_at * num_layers), num_layers - 1),)

    def find_end(self, num_layers: int) -> int:
        """The site before which the tokens are made anew; the number of layers is behind the last."""
        return max(self.find_sites(num_layers)[0] + 1, min(round(self.rebuild_at * num_layers), num_layers))

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        states = hidden.float()
        start, index, near = lay_out(span.segments, span.count, span.modality != "audio", self.reach)
        start, index, near = (x.to(hidden.device) for x in (start, index, near))
        shares, centres = start.expand(len(hidden), -1, -1), start @ states  # [B, M, N] and [B, M, D]
        for _ in range(self.iterations):
            distance = measure_squared(centres, states).masked_fill(~near, torch.inf)  # [B, M, N]
            given = (-self.temperature * distance).softmax(1)
            shares = given / given.sum(-1, keepdim=True).clamp_min(1e-16)
            centres = shares @ states
        weight = torch.exp(-self.temperature * measure_squared(states, centres))  # [B, N, M]
        best = weight.topk(min(self.nearest, span.count), -1)
        taken = torch.zeros_like(weight).scatter(-1, best.indices, best.values)
        taken = taken / taken.sum(-1, keepdim=True).clamp_min(1e-16)
        back = Return(self.find_end(span.num_layers), taken, torch.zeros_like(taken[..., 0]))
        return Plan(index.expand(len(hidden), -1), shares, back=back)


def measure_squared(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances of a [B, N, D] to b [B, M, D], [B, N, M]."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()


def lay_out(segments: Sequence[int], count: int, is_raster: bool, reach: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first clusters: their means as a matrix [M, N], the token in the middle of each, int64 [M], and which tokens
    may belong to which, bool [M, N]: those whose own cluster is at most `reach` clusters away, along each side."""
    merge, index = map_runs(segments, count, is_raster, average_line)
    given_each = allot(count, segments)
    if 0 in given_each:
        segments, given_each = [sum(segments)], [count]
    places = []
    for run, (length, given) in enumerate(zip(segments, given_each, strict=True)):
        sides = find_raster(length) if is_raster else None
        wide = (find_grid(given, sides) or (1, given))[1] if sides else given
        places += [(run, cluster // wide, cluster % wide) for cluster in range(given)]
    at = torch.tensor(places)  # [M, 3]
    own = at[merge.argmax(0)]  # [N, 3], of the cluster of each token
    away = (at[:, None] - own).abs()
    return merge, index, (away[..., 0] == 0) & (away[..., 1:] <= reach).all(-1)

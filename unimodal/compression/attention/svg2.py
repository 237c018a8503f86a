"""SVG2 (Sparse VideoGen2, arXiv 2505.18875): queries and keys in clusters of like ones, and the clusters that matter.

For every head, k-means groups the queries and the keys, and tokens are ordered cluster by cluster. The softmax of the
products of a query cluster's mean with the keys' means, each key mean counted as often as it has keys, says how much of
the attention a key cluster would get. Key clusters are taken from the greatest on, until they have the share `top_p`;
`least` of them are always taken. Queries attend to the keys of those clusters alone. Nothing is trained.

The authors begin k-means at random tokens, and carry the means from one step of a sampler to the next with two rounds
each; here it begins at tokens at even distances, in every call, so that a call depends on its input alone.

Shapes: B items, H heads, N tokens, D width of a head, Q and K clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from unimodal.compression.attention.replacing import ReplacedAttention, attend_pairs


class Clusters(NamedTuple):
    """Of tokens [B, H, N, D]: labels int64 [B, H, N], means float32 [B, H, K, D], sizes int64 [B, H, K]."""

    labels: Tensor
    means: Tensor
    sizes: Tensor


class SemanticAttention(ReplacedAttention):
    """Within it, attention over a grid is that of query clusters to the key clusters that count (SVG2).

    num_queries, num_keys: clusters, at most as many as tokens. top_p: share of the estimated attention that is kept.
    least: share of the key clusters that are taken in any case. rounds: of k-means. Tokens around the grid attend to
    all and are attended to by all. Raises ValueError for numbers out of range.
    """

    paper: ClassVar[str] = "SVG2, arXiv 2505.18875"

    def __init__(
        self,
        grid: Sequence[int],
        num_queries: int = 100,
        num_keys: int = 500,
        top_p: float = 0.9,
        least: float = 0.1,
        rounds: int = 10,
        before: int = 0,
        after: int = 0,
    ):
        super().__init__(grid, before, after)
        if min(num_queries, num_keys, rounds) < 1:
            raise ValueError(f"{num_queries} and {num_keys} clusters in {rounds} rounds; give numbers of at least 1")
        if not 0 < top_p <= 1 or not 0 <= least <= 1:
            raise ValueError(f"top_p is {top_p} and least {least}; give shares of the attention and of the clusters")
        self.num_queries, self.num_keys, self.top_p, self.least, self.rounds = (
            num_queries, num_keys, top_p, least, rounds,
        )  # fmt: skip

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        end = query.shape[2] - self.after
        inside = slice(self.before, end)
        queries = cluster(query[:, :, inside], self.num_queries, self.rounds)
        keys = cluster(key[:, :, inside], self.num_keys, self.rounds)
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        chosen = choose_clusters(queries, keys, scale, self.top_p, self.least)  # [B, H, Q, K]
        of_query, of_key = (self._label_around(labels, chosen) for labels in ((queries, 2), (keys, 3)))
        whole = torch.nn.functional.pad(chosen, (0, 1, 0, 1), value=True)  # the last ones are around the grid
        query_order, key_order = (each.argsort(dim=-1, stable=True) for each in (of_query, of_key))
        of_query, of_key = of_query.gather(-1, query_order), of_key.gather(-1, key_order)

        def sees(item: Tensor, head: Tensor, at: Tensor, other: Tensor) -> Tensor:
            return whole[item, head, of_query[item, head, at], of_key[item, head, other]]

        query, key, value = permute(query, query_order), permute(key, key_order), permute(value, key_order)
        made = attend_pairs(query, key, value, sees, scale)
        places = query_order[..., None].expand_as(made)
        return torch.empty_like(made).scatter_(2, places, made)

    def _label_around(self, given: tuple[Clusters, int], chosen: Tensor) -> Tensor:
        """The clusters of all tokens, int64 [B, H, N], those around the grid in one of their own."""
        clusters, axis = given
        return torch.nn.functional.pad(clusters.labels, (self.before, self.after), value=chosen.shape[axis])


def permute(x: Tensor, order: Tensor) -> Tensor:
    """x [B, H, N, D] in the order int64 [B, H, N]."""
    return x.gather(2, order[..., None].expand_as(x))


def cluster(x: Tensor, num: int, rounds: int) -> Clusters:
    """k-means of x [B, H, N, D] by squared distances, begun at tokens at even distances; an empty cluster stays where
    it was."""
    x = x.float()
    total = x.shape[2]
    num = min(num, total)
    means = x[:, :, torch.arange(num, device=x.device) * total // num]
    for _ in range(rounds):
        labels = torch.cdist(x, means).argmin(-1)
        hot = torch.nn.functional.one_hot(labels, num).to(x)  # [B, H, N, K]
        sizes = hot.sum(2)
        means = torch.where(sizes[..., None] > 0, hot.transpose(2, 3) @ x / sizes[..., None].clamp_min(1), means)
    labels = torch.cdist(x, means).argmin(-1)
    sizes = torch.zeros(*labels.shape[:2], num, dtype=torch.int64, device=x.device)
    return Clusters(labels, means, sizes.scatter_add_(2, labels, torch.ones_like(labels)))


def choose_clusters(queries: Clusters, keys: Clusters, scale: float, top_p: float, least: float) -> Tensor:
    """Which key clusters the query clusters attend to, bool [B, H, Q, K]."""
    scores = queries.means @ keys.means.transpose(2, 3) * scale
    shares = (scores + keys.sizes[:, :, None].float().log()).softmax(-1)  # a cluster counts as often as it has keys
    sorted_shares, order = shares.sort(-1, descending=True)
    before = sorted_shares.cumsum(-1) - sorted_shares
    kept = before <= top_p  # the one that passes the share is taken
    kept[..., : max(1, int(least * kept.shape[-1]))] = True
    if top_p == 1:
        kept = torch.ones_like(kept)
    return torch.zeros_like(kept).scatter_(-1, order, kept)

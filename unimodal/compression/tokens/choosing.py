"""Choose and cluster tokens of a batch of spans by scores and by distances; used by many methods.

Shapes: B spans, N tokens, M chosen, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def choose_best(scores: Tensor, count: int) -> Tensor:
    """The M = `count` tokens of the highest scores [B, N], int64 [B, M], ascending; of equal ones the first."""
    return scores.argsort(dim=-1, descending=True, stable=True)[:, :count].sort(-1).values


def compute_cosines(a: Tensor, b: Tensor | None = None) -> Tensor:
    """Cosines of states a [B, N, D] with states b [B, M, D], or among themselves, float32 [B, N, M]."""
    a = F.normalize(a.float(), dim=-1)
    b = a if b is None else F.normalize(b.float(), dim=-1)
    return a @ b.transpose(1, 2)


def choose_spread_out(distance: Tensor, first: Tensor, count: int, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Greedy choice of M = `count` tokens by distance [B, N, N], int64 [B, M], ascending.

    It begins with `first` int64 [B] and always adds the token whose distance to all chosen ones is largest. join: what
    that distance is, with a new token among the chosen: `torch.minimum` takes the nearest (max-min), `torch.add` the
    sum (max-sum).
    """
    rows = torch.arange(len(distance), device=distance.device)
    chosen = [first]
    joined = distance[rows, first]  # [B, N]
    taken = torch.zeros_like(joined, dtype=torch.bool)
    taken[rows, first] = True
    for _ in range(count - 1):
        new = joined.masked_fill(taken, -torch.inf).argmax(-1)
        chosen.append(new)
        taken[rows, new] = True
        joined = join(joined, distance[rows, new])
    return torch.stack(chosen, 1).sort(-1).values


def merge_clusters(assigned: Tensor, count: int, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Clusters as a merge: the matrix [B, M, N] of their size-weighted means, and their sizes [B, M].

    assigned: int64 [B, N], the cluster of each token, below M = `count`. sizes: [B, N].
    """
    belongs = F.one_hot(assigned, count).transpose(1, 2) * sizes[:, None]  # [B, M, N]
    total = belongs.sum(-1)
    return belongs / total[..., None].clamp_min(1e-9), total

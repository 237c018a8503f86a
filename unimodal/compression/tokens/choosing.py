"""Choosing tokens by scores and by distances, for a batch of spans: what many methods share.

Shapes: B spans, N tokens, M chosen, D width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def best(scores: Tensor, count: int) -> Tensor:
    """The tokens of the highest scores [B, N] in the order of the sequence, int64 [B, M]; of equal ones the first."""
    return scores.argsort(dim=-1, descending=True, stable=True)[:, :count].sort(-1).values


def cosine(a: Tensor, b: Tensor | None = None) -> Tensor:
    """Cosines of states [B, N, D] with [B, M, D], or among themselves, float32 [B, N, M]."""
    a = F.normalize(a.float(), dim=-1)
    b = a if b is None else F.normalize(b.float(), dim=-1)
    return a @ b.transpose(1, 2)


def spread_out(distance: Tensor, first: Tensor, count: int, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Greedy choice by distance [B, N, N]: after first int64 [B], always the token whose joined distance is largest.

    join: how a token's distance to all chosen is updated by its distance to the new one: `torch.minimum` chooses for
    the nearest (max-min), `torch.add` for the sum (max-sum). In the order of the sequence, int64 [B, M].
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


def merged_into(assigned: Tensor, count: int, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Clusters of tokens: assigned int64 [B, N], sizes [B, N] -> (size-weighted mean [B, M, N], sizes [B, M])."""
    belongs = F.one_hot(assigned, count).transpose(1, 2) * sizes[:, None]  # [B, M, N]
    total = belongs.sum(-1)
    return belongs / total[..., None].clamp_min(1e-9), total

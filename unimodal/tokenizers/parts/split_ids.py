"""One large code ⇄ several small ones: the digits of a number in a mixed base.

A language model that reads and writes codes has a row for each value; a code of more than 65,536 values is given as
several (token factorization of Open-MAGVIT2, arXiv 2409.04410).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def split_ids(ids: Tensor, sizes: Sequence[int]) -> Tensor:
    """ids: int64 [...] below the product of `sizes` → int64 [..., G]; the first is the least significant."""
    parts = []
    for size in sizes:
        parts.append(ids % size)
        ids = ids // size
    return torch.stack(parts, dim=-1)


def join_ids(parts: Tensor, sizes: Sequence[int]) -> Tensor:
    """parts: int64 [..., G] → ids int64 [...]; the inverse of ``split_ids``."""
    ids = torch.zeros_like(parts[..., 0])
    for group in reversed(range(len(sizes))):
        ids = ids * sizes[group] + parts[..., group]
    return ids

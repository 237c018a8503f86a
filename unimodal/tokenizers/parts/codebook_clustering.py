"""Codes that are hardly used are pulled to the nearest vectors of the batch (CVQ-VAE, arXiv 2307.15139, as TA-TiTok,
2501.07730, trains its codebook).

Shapes: V vectors, D dimensions, K codes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unimodal.tokenizers.parts.ranks import add_over_ranks, copy_from_first


@torch.no_grad()
def pull_unused_codes(
    codebook: Tensor, usage: Tensor, vectors: Tensor, ids: Tensor, decay: float = 0.99, unit: bool = False
) -> None:
    """Changes codebook [K, D] and usage [K], the running share of vectors that each code gets, in place.

    vectors: float [V, D]; ids: int64 [V], the code of each. unit: the nearest are sought at length 1, though what codes
    move to are the vectors as they are. A code of share p moves to the vector nearest to it with weight
    exp(-10·K·p / (1 - decay) - 0.001): at once where it is never used, hardly at all where it is. With several
    processes shares are those of all, and the vectors those of the first.
    """
    counts = add_over_ranks(torch.bincount(ids, minlength=len(codebook)).to(usage))
    usage.mul_(decay).add_(counts / counts.sum(), alpha=1 - decay)
    rows, compared = (normalize(x, dim=-1) if unit else x for x in (codebook, vectors))
    nearest = vectors[torch.cdist(compared, rows).argmin(0)] if len(vectors) else torch.zeros_like(codebook)
    weight = torch.exp(-usage * len(codebook) * 10 / (1 - decay) - 1e-3).unsqueeze(1)
    codebook.lerp_(copy_from_first(nearest.to(codebook)), weight)

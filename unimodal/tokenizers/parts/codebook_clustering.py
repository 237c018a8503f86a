"""Codes that are hardly used are pulled to the nearest vectors of the batch (CVQ-VAE, arXiv 2307.15139, as TA-TiTok,
2501.07730, trains its codebook).

Shapes: V vectors, D dimensions, K codes.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def pull_unused_codes(codebook: Tensor, usage: Tensor, vectors: Tensor, ids: Tensor, decay: float = 0.99) -> None:
    """Changes codebook [K, D] and usage [K], the running share of vectors that each code gets, in place.

    vectors: float [V, D]; ids: int64 [V], the code of each. A code of share p moves to the vector nearest to it with
    weight exp(-10·K·p / (1 - decay) - 0.001): at once where it is never used, hardly at all where it is.
    """
    share = torch.bincount(ids, minlength=len(codebook)).to(usage) / len(ids)
    usage.mul_(decay).add_(share, alpha=1 - decay)
    nearest = torch.cdist(vectors, codebook).argmin(0)
    weight = torch.exp(-usage * len(codebook) * 10 / (1 - decay) - 1e-3).unsqueeze(1)
    codebook.lerp_(vectors[nearest].to(codebook), weight)

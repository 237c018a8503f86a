"""How smooth distributions over ordered codes are, as the Fourier head's paper measures it (arXiv 2410.22269).

A distribution is compared with itself after Gaussian smoothing of deviation σ codes, around the end of the line:

    s(p) = Σ_{σ = 1}^{100} 6 / (π² σ²) · ‖p - g_σ * p‖₂

0 of the uniform distribution; less is smoother.

Shapes: P distributions, V codes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LARGEST = 100  # σ


def measure_smoothness(probabilities: Tensor) -> Tensor:
    """Distributions [P, V] → s [P], float64. The kernel reaches V - 1 codes to both sides, as the authors' does.

    Raises ValueError for what is no distribution.
    """
    if probabilities.dim() != 2 or bool((probabilities.sum(1) - 1).abs().max() > 1e-3):
        raise ValueError(f"distributions are [P, V] with sums of 1; got {list(probabilities.shape)}")
    p = probabilities.double()
    num = p.shape[1]
    offsets = torch.arange(1 - num, num, dtype=torch.float64, device=p.device)  # [2V - 1]
    found = torch.zeros(len(p), dtype=torch.float64, device=p.device)
    for sigma in range(1, LARGEST + 1):
        kernel = torch.exp(-0.5 * (offsets / sigma).square())
        around = torch.zeros(num, dtype=torch.float64, device=p.device)
        around.index_add_(0, (offsets % num).long(), kernel / kernel.sum())
        smooth = torch.fft.irfft(torch.fft.rfft(p) * torch.fft.rfft(around), num)
        found += 6 / (math.pi**2 * sigma**2) * (p - smooth).norm(dim=1)
    return found

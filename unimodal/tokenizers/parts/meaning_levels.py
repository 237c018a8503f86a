"""What a picture shows as ordered codes: discriminants of a frozen network's features in levels, fitted in closed form.

A linear discriminant analysis over pictures of known things in several drawing styles (shrinkage as in Friedman 1989)
gives directions in which things differ and styles do not, the strongest first. Each code is the next few of them, each
in one of a few levels that are equally frequent. No table of known things is kept: an unseen thing has codes of its
own, near ones where it is like another.

Shapes: B batch, F features, S codes of K dimensions, L = S · K directions, M pictures, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize


class MeaningLevels(nn.Module):
    """Pooled features [B, F] ≥ 0 ⇄ S codes, the first the most telling. Fitted, never trained."""

    mean: Tensor
    projection: Tensor
    bounds: Tensor
    basis: Tensor

    def __init__(self, num_features: int, num_codes: int, levels: Sequence[int]):
        """levels: of each dimension of a code, as many of all; dimension 0 is the fastest. ValueError for others."""
        super().__init__()
        if len(set(levels)) != 1 or levels[0] < 2:
            raise ValueError(f"a meaning code has as many levels in every dimension, 2 or more; got {list(levels)}")
        self.num_codes, self.levels, self.size = num_codes, tuple(levels), prod(levels)
        count = num_codes * len(levels)
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("projection", torch.zeros(num_features, count))
        self.register_buffer("bounds", torch.zeros(count, levels[0] - 1))  # between levels
        basis = torch.cumprod(torch.tensor([1, *levels[:-1]]), 0)
        self.register_buffer("basis", basis, persistent=False)

    @property
    def fitted(self) -> bool:
        return bool(self.projection.any())

    def project(self, features: Tensor) -> Tensor:
        """features: [B, F] → [B, L]. The square root tames features that fire rarely but strongly."""
        return (root_features(features.float()) - self.mean) @ self.projection

    def forward(self, features: Tensor) -> Tensor:
        """features: [B, F] → ids int64 [B, S]."""
        level = (self.project(features).unsqueeze(-1) > self.bounds).sum(-1)  # [B, L]
        return (level.unflatten(1, (self.num_codes, -1)) * self.basis).sum(-1)

    def to_values(self, ids: Tensor) -> Tensor:
        """ids: int64 [...] → float32 [..., K], the levels in [-1, 1]."""
        count = self.levels[0]
        return (ids.unsqueeze(-1) // self.basis) % count * (2 / (count - 1)) - 1

    @torch.no_grad()
    def fit(self, features: Tensor, labels: Tensor, shrinkage: float = 1.0) -> None:
        """features: [M, F]; labels: int64 [M] in [0, C), every one of them present.

        ``shrinkage`` adds that share of the mean within-label variance to every direction. Raises ValueError where
        there are too few labels for so many directions.
        """
        num_labels, count = int(labels.max()) + 1, self.projection.shape[1]
        if num_labels <= count:
            raise ValueError(f"{count} directions of meaning need more than {count} labels; there are {num_labels}")
        rooted = root_features(features.float())
        sums = torch.zeros(num_labels, rooted.shape[1]).index_add_(0, labels, rooted)
        centres = sums / torch.bincount(labels, minlength=num_labels).unsqueeze(1)  # [C, F]
        mean = centres.mean(0)
        directions = find_discriminants(rooted - centres[labels], centres - mean, shrinkage)[:, :count]
        self.mean.copy_(mean)
        self.projection.copy_(directions / directions.abs().max())  # one scale, so that half precision holds it
        shares = torch.arange(1, self.levels[0]) / self.levels[0]
        self.bounds.copy_(torch.quantile(self.project(features), shares, dim=0).T)


def root_features(features: Tensor) -> Tensor:
    """Square roots, scaled to length 1: [B, F] → [B, F]."""
    return normalize(features.clamp_min(0).sqrt(), dim=-1)


def find_discriminants(within: Tensor, between: Tensor, shrinkage: float) -> Tensor:
    """within: [M, F], pictures minus their label's centre; between: [C, F], centres minus their mean → directions
    [F, F], those that tell labels apart best first."""
    covariance = (within.T @ within / len(within)).double()
    least = 1e-6 * between.square().mean().double()  # of labels with one picture each, which do not vary
    ridge = shrinkage * covariance.diagonal().mean() + least
    covariance += ridge * torch.eye(len(covariance), dtype=torch.float64)
    factor = torch.linalg.cholesky(covariance)
    half = torch.linalg.solve_triangular(factor, (between.T @ between / len(between)).double(), upper=False)
    whitened = torch.linalg.solve_triangular(factor, half.T, upper=False)
    vectors = torch.linalg.eigh((whitened + whitened.T) / 2).eigenvectors.flip(-1)
    return torch.linalg.solve_triangular(factor.T, vectors, upper=True).float()

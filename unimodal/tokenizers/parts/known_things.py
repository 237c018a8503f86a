"""Which known things a picture is most like: the nearest means of labelled pictures, by a frozen network's features.

Discriminants of the features tell things apart across drawing styles (`parts.meaning_levels`); a thing is the mean of
its pictures along them, and a picture is named by the things at the smallest angles (nearest class mean, Mensink et al.
2013, doi 10.1109/TPAMI.2013.83). The ids are words for what is known; an unseen thing has those of what it is like.

Shapes: B batch, F features, D directions, M pictures, C things, N ids of a picture.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from unimodal.tokenizers.parts.meaning_levels import find_discriminants, root_features


class KnownThings(nn.Module):
    """Pooled features [B, F] ≥ 0 → the nearest of C things. Fitted, never trained."""

    mean: Tensor
    projection: Tensor
    centres: Tensor

    def __init__(self, num_features: int, num_things: int, num_dims: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("projection", torch.zeros(num_features, num_dims))
        self.register_buffer("centres", torch.zeros(num_things, num_dims))  # of length 1, after the fit

    def project(self, features: Tensor) -> Tensor:
        """features: [B, F] → [B, D] of length 1."""
        return normalize((root_features(features.float()) - self.mean) @ self.projection, dim=-1)

    def forward(self, features: Tensor, count: int) -> Tensor:
        """features: [B, F] → the ids of the nearest things, the nearest first, int64 [B, N]; zeros before the fit."""
        return (self.project(features) @ self.centres.T).topk(count, dim=1).indices

    @torch.no_grad()
    def fit(self, features: Tensor, labels: Tensor, shrinkage: float) -> None:
        """features: [M, F]; labels: int64 [M] in [0, C), every one of them present; shrinkage as of `MeaningLevels`.

        Raises ValueError where there are too few labels for so many directions.
        """
        things, count = self.centres.shape
        if things <= count:
            raise ValueError(f"{count} directions of known things need more than {count} labels; there are {things}")
        rooted = root_features(features.float())
        pictures = torch.bincount(labels, minlength=things).unsqueeze(1)
        centres = torch.zeros(things, rooted.shape[1]).index_add_(0, labels, rooted) / pictures  # [C, F]
        self.mean.copy_(centres.mean(0))
        directions = find_discriminants(rooted - centres[labels], centres - self.mean, shrinkage)[:, :count]
        self.projection.copy_(directions / directions.abs().max())  # one scale, so that half precision holds it
        self.centres.copy_(
            normalize(torch.zeros_like(self.centres).index_add_(0, labels, self.project(features)), dim=-1)
        )

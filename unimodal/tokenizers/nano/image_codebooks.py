"""The two codebooks of nano's image tokenizer that are fitted in closed form: what a picture shows, and which known
picture it looks like.

Shapes: B batch, S semantic codes, P grid positions, C prototypes, L discriminant dimensions, E looks (known pictures),
A principal components, U thumbnail values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unimodal.tokenizers.nano.efficientnet import NUM_FEATURES
from unimodal.tokenizers.nano.image_config import ImageTokenizerConfig


class SemanticBranch(nn.Module):
    """Frozen-trunk features [B, 1280] → the S nearest of C prototypes. Fitted in closed form, never trained by
    gradient."""

    def __init__(self, config: ImageTokenizerConfig):
        super().__init__()
        self.num_codes = config.num_semantic
        self.register_buffer("mean", torch.zeros(NUM_FEATURES))
        self.register_buffer("projection", torch.zeros(NUM_FEATURES, config.semantic_dims))
        self.register_buffer("prototypes", torch.zeros(config.num_prototypes, config.semantic_dims))

    def project(self, features: Tensor) -> Tensor:
        """features: [B, 1280] ≥ 0 → unit vectors [B, L]. The square root tames features that fire rarely but
        strongly."""
        rooted = nn.functional.normalize(features.clamp_min(0).sqrt(), dim=-1)
        return nn.functional.normalize((rooted - self.mean) @ self.projection, dim=-1)

    def forward(self, features: Tensor) -> Tensor:
        """features: [B, 1280] → ids int64 [B, S], nearest first."""
        return self.find_nearest(features, self.num_codes)

    def find_nearest(self, features: Tensor, count: int) -> Tensor:
        """features: [B, 1280] → the nearest ``count`` prototypes, ids int64 [B, count]."""
        return (self.project(features) @ self.prototypes.T).topk(count, dim=-1).indices

    def look_up(self, ids: Tensor) -> Tensor:
        """ids: int64 [B, S] → prototypes [B, S, L]."""
        return self.prototypes[ids]

    @torch.no_grad()
    def fit(self, features: Tensor, labels: Tensor, shrinkage: float = 0.3) -> None:
        """Linear discriminants and one prototype a label.

        features: [M, V, 1280] of M pictures in V views; labels: int64 [M] in [0, C), every one of them present.
        ``shrinkage`` adds that share of the mean within-label variance to every direction (regularised LDA, Friedman
        1989).
        """
        rooted = nn.functional.normalize(features.float().clamp_min(0).sqrt(), dim=-1)
        num_labels = int(labels.max()) + 1
        sums = torch.zeros(num_labels, NUM_FEATURES).index_add_(0, labels, rooted.mean(1))
        centres = sums / torch.bincount(labels, minlength=num_labels).unsqueeze(1)  # [C, 1280]
        self.mean.copy_(centres.mean(0))
        within = (rooted - centres[labels].unsqueeze(1)).flatten(0, 1)
        between = centres - self.mean
        covariance = within.T @ within / len(within)
        covariance += shrinkage * covariance.diagonal().mean() * torch.eye(NUM_FEATURES)
        factor = torch.linalg.cholesky(covariance.double())
        half = torch.linalg.solve_triangular(factor, (between.T @ between / num_labels).double(), upper=False)
        whitened = torch.linalg.solve_triangular(factor, half.T, upper=False)
        directions = torch.linalg.eigh((whitened + whitened.T) / 2).eigenvectors.flip(-1)[:, : self.projection.shape[1]]
        projection = torch.linalg.solve_triangular(factor.T, directions, upper=True).float()
        self.projection.copy_(projection / projection.abs().max())  # one scale, so that half precision holds it
        self.prototypes.copy_(nn.functional.normalize((centres - self.mean) @ self.projection, dim=-1))


class LookBranch(nn.Module):
    """A picture [B, 3, 64, 64] → the nearest of E known pictures by the principal components of a thumbnail. Fitted in
    closed form, never trained by gradient."""

    def __init__(self, config: ImageTokenizerConfig):
        super().__init__()
        self.grid, self.patch = config.grid, config.look_patch
        num_pixels = 3 * (self.grid * self.patch) ** 2
        self.register_buffer("mean", torch.zeros(num_pixels))
        self.register_buffer("basis", torch.zeros(config.look_components, num_pixels))  # [A, U]
        self.register_buffer("table", torch.zeros(config.num_looks, config.look_components))  # [E, A]

    def make_thumbnail(self, x: Tensor) -> Tensor:
        """x: [B, 3, 64, 64] in [0, 1] → [B, U] in [-1, 1], by cell of the grid, then channel, row and column."""
        side = self.grid * self.patch
        small = nn.functional.interpolate(x.float(), size=(side, side), mode="area") * 2 - 1
        return nn.functional.pixel_unshuffle(small, self.patch).flatten(2).transpose(1, 2).flatten(1)

    def project(self, x: Tensor) -> Tensor:
        """x: [B, 3, 64, 64] → [B, A]."""
        with torch.autocast(x.device.type, enabled=False):
            return (self.make_thumbnail(x) - self.mean) @ self.basis.T

    def find_nearest(self, x: Tensor, count: int) -> Tensor:
        """x: [B, 3, 64, 64] → ids int64 [B, count], nearest first."""
        return torch.cdist(self.project(x), self.table).topk(count, dim=-1, largest=False).indices

    def look_up(self, ids: Tensor) -> Tensor:
        """ids: int64 [B] → thumbnails by cell [B, P, U / P]."""
        with torch.autocast(ids.device.type, enabled=False):
            return (self.table[ids] @ self.basis + self.mean).unflatten(1, (self.grid**2, -1))

    @torch.no_grad()
    def fit(self, pictures: Tensor) -> None:
        """pictures: [E, 3, 64, 64] in [0, 1], one for each look."""
        thumbnails = torch.cat([self.make_thumbnail(part) for part in pictures.split(512)])  # [E, U]
        self.mean.copy_(thumbnails.mean(0))
        centred = thumbnails - self.mean
        vectors = torch.linalg.eigh((centred.T @ centred).double()).eigenvectors.flip(-1)  # [U, U]
        self.basis.copy_(vectors[:, : len(self.basis)].T.float())
        self.table.copy_(centred @ self.basis.T)

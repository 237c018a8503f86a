"""New rows projected from the codebook vectors of their codes; rows without one begin as `description` says.

Codes whose vectors are near each other in the codebook get rows near each other: a random projection keeps distances
(Johnson and Lindenstrauss 1984), and VQGAN-LC (arXiv 2406.11837) starts from a projector over a frozen codebook. The
projected rows are given the base's mean and covariance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unimodal.model.initialisers.description import average_words
from unimodal.model.initialisers.request import RowRequest

OWN = 0.3  # share of a row's variance that is its own: codes with equal vectors must not share a row


def project_codebook(request: RowRequest) -> Tensor:
    """New rows [R, D]: the features of each block, centred, scaled, projected and given the base's covariance.

    Raises ValueError for features that do not fit the new rows.
    """
    rows = average_words(request)
    num_base, width = request.table.shape
    used = request.list_used()
    centred = used - used.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(used))
    root = (vectors * values.clamp_min(0).sqrt()).T  # [D, D]: unit normal → the base's covariance
    generator = request.make_generator()
    for span, features in sorted(request.features.items(), key=lambda item: item[0].start):
        if len(features) != len(span) or span.start < num_base or span.stop > num_base + request.num_rows:
            raise ValueError(
                f"{len(features)} codebook vectors do not fit the new rows {span.start} to {span.stop - 1}"
            )
        vectors_of_codes = features.detach().float().to(used.device)  # [n, F]
        vectors_of_codes = vectors_of_codes - vectors_of_codes.mean(0)
        scale = vectors_of_codes.square().sum(1).mean().sqrt().clamp_min(1e-6)  # mean length 1
        projection = torch.randn(vectors_of_codes.shape[1], width, generator=generator).to(used.device)
        own = torch.randn(len(span), width, generator=generator).to(used.device)
        unit = (1 - OWN) ** 0.5 * (vectors_of_codes / scale) @ projection + OWN**0.5 * own  # [n, D], unit variance
        rows[span.start - num_base : span.stop - num_base] = used.mean(0) + unit @ root
    return rows

"""New rows drawn from the normal distribution with the mean and covariance of the base's rows.

John Hewitt, "Initializing new word embeddings for pretrained language models" (2021): a new row that follows the
distribution of the old ones neither drowns their logits nor gets all the probability, which bounds the change of the
base's predictions. Unlike the mean alone, the rows can be told apart from the first step on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unimodal.model.initialisers.request import RowRequest


def draw_by_covariance(request: RowRequest) -> Tensor:
    """New rows [R, D] with the base's mean and covariance."""
    used = request.list_used()
    centred = used - used.mean(0)
    # rows of noise [R, min(V, D)] times the root of the covariance: U S Vᵀ / sqrt(V) without forming [R, V]
    if len(used) > used.shape[1]:
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(used))
        root = vectors * values.clamp_min(0).sqrt()  # [D, D]
        drawn = request.draw_noise(request.num_rows, root.shape[1]) @ root.T
    else:
        drawn = request.draw_noise(request.num_rows, len(used)) @ centred / len(used) ** 0.5
    return used.mean(0) + drawn

"""New rows at the mean of the base rows of their words; rows without words are drawn by covariance.

Averaging the old pieces of a new token is fast vocabulary transfer (FVT, arXiv 2402.09977); initialising a token from
its name or description is the start of "Re-Initialization Token Learning" (arXiv 2506.14248). Here `<|user|>` begins
as "user", and a concept's prototype as the concept's label. A tenth of the base's spread is added as noise: two codes
with the same description must not be the same row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unimodal.model.initialisers.covariance import draw_by_covariance
from unimodal.model.initialisers.mean import NOISE
from unimodal.model.initialisers.request import RowRequest


def average_words(request: RowRequest) -> Tensor:
    """New rows [R, D], each the mean of its words' rows with noise.

    Raises ValueError for words of a row that is not new, and for words outside the base.
    """
    rows = draw_by_covariance(request)
    num_base = len(request.table)
    table = request.table.detach().float()
    noise = NOISE * request.list_used().std(0, correction=0) * request.draw_noise(*rows.shape)
    for row, words in request.words.items():
        if not num_base <= row < num_base + request.num_rows:
            raise ValueError(f"row {row} is described but the new rows are {num_base} to {num_base + len(rows) - 1}")
        if not words or min(words) < 0 or max(words) >= num_base:
            raise ValueError(f"row {row} is described by the rows {list(words)[:4]}; give rows of the base's words")
        index = torch.tensor(list(words), device=table.device)
        rows[row - num_base] = table[index].mean(0) + noise[row - num_base]
    return rows

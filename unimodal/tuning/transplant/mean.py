"""Every new row at the mean of the base's: what other methods are measured against.

Rows of tokens that the base has too are copied, as mergekit's `tokensurgeon` does with every one of its methods.
"""

from __future__ import annotations

import torch

from unimodal.tuning.transplant.request import SparseMixture, TransplantRequest


def mix_mean(request: TransplantRequest) -> SparseMixture:
    """Nothing: rows that are not copied are filled with the mean."""
    empty = torch.zeros(0, dtype=torch.int64)
    return SparseMixture(request.num_rows, empty, empty, torch.zeros(0))

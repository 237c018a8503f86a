"""Transplanting by orthogonal matching pursuit (arXiv:2506.06607), as mergekit's `tokensurgeon` does it.

A donor model has the new tokenizer. Each of its rows that the base lacks is written as a sparse combination of the
donor's rows of shared tokens, and the same combination of the base's rows becomes the new row; on an untied model each
side of the donor decides for the same side. The atom of the greatest product with the residual is picked, so that a
long row counts more than a short one; `initialisers/matching_pursuit.py` picks by the direction, and centres. 64 atoms
are mergekit's default; a narrow donor is then written with large weights of both signs, and fewer do better. No more
are picked than the donor is wide, since so many already write any row exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unimodal.model.initialisers.matching_pursuit import fit_sparse_combination
from unimodal.tuning.transplant.request import Side, SparseMixture, TransplantRequest

CHUNK = 512


def mix_by_pursuit(request: TransplantRequest, side: Side = "input") -> SparseMixture:
    """Raises ValueError without a donor, and for tokenizers that share no token."""
    if request.donor is None:
        raise ValueError("method 'omp' needs a model with the new tokenizer; name one with --donor")
    shared = sorted(request.shared)
    if not shared:
        raise ValueError("the two tokenizers share no token, so method 'omp' has nothing to mix; use 'fvt'")
    rows = request.donor[side].double()  # [N, E]
    anchors = rows[torch.tensor(shared)]  # [A, E]
    there = torch.tensor([request.shared[row] for row in shared])
    missing = torch.tensor(request.unshared, dtype=torch.int64)
    if request.num_atoms < 1:
        raise ValueError(f"{request.num_atoms} atoms: give one or more")
    count = min(request.num_atoms, len(shared), rows.shape[1])
    index: list[Tensor] = []
    weights: list[Tensor] = []
    for part in missing.split(CHUNK):
        chosen, fitted = fit_sparse_combination(rows[part], anchors, count, by_direction=False)
        index.append(torch.stack([part[:, None].expand_as(chosen), there[chosen]]).flatten(1))
        weights.append(fitted.flatten())
    pairs = torch.cat(index, 1) if index else torch.zeros(2, 0, dtype=torch.int64)
    return SparseMixture(request.num_rows, pairs[0], pairs[1], torch.cat(weights) if weights else torch.zeros(0))

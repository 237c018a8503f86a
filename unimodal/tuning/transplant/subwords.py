"""A new row at the mean of the rows of its pieces: fast vocabulary transfer (Gee et al. 2022, arXiv:2402.09977).

A token that the base lacks is cut by the base's tokenizer, and its row is the mean of the rows of its parts. Tokens
that both have keep their rows.
"""

from __future__ import annotations

from unimodal.tuning.transplant.request import SparseMixture, TransplantRequest


def mix_subwords(request: TransplantRequest) -> SparseMixture:
    """For each new token, the same weight for every row that the base spells it with."""
    mixed: dict[int, dict[int, float]] = {}
    for row in request.unshared:
        parts = request.decompose(request.new.spelled[row])
        weights = mixed.setdefault(row, {})
        for part in parts:
            weights[part] = weights.get(part, 0.0) + 1 / len(parts)
    return SparseMixture.from_rows(request.num_rows, mixed)

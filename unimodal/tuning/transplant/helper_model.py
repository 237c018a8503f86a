"""CLP-Transfer (Ostendorff and Rehm 2023, arXiv:2301.09626): a small model of the new language says what is like what.

A helper model with the new tokenizer has a row for every new token. The similarity of a missing token's row to those of
the tokens that both tokenizers have, by the cosine, divided by the sum of all these, weighs the base's rows of the
shared tokens, which themselves are copied. As in the authors' program all shared tokens count, and the helper's input
rows decide for both sides.
"""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from unimodal.tuning.transplant.request import SimilarityMixture, TransplantRequest


def mix_by_helper(request: TransplantRequest) -> SimilarityMixture:
    """Raises ValueError without a helper model, and for tokenizers that share no token."""
    if request.donor is None:
        raise ValueError("method 'clp' needs a model with the new tokenizer; name one with --donor")
    shared = sorted(request.shared)
    if not shared:
        raise ValueError("the two tokenizers share no token, so method 'clp' has nothing to mix; use 'fvt'")
    rows = request.donor["input"].float()  # [N, E]
    missing = torch.tensor(request.unshared, dtype=torch.int64)
    return SimilarityMixture(
        request.num_rows,
        missing,
        normalize(rows[missing], dim=1),
        torch.tensor([request.shared[row] for row in shared]),
        normalize(rows[torch.tensor(shared)], dim=1),
    )

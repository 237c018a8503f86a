"""New rows transplanted from a donor model by orthogonal matching pursuit.

"Training-Free Tokenizer Transplantation via Orthogonal Matching Pursuit" (arXiv 2506.06607): a new token's row in the
donor is written as a sparse combination of the donor's rows of shared tokens (anchors), and the same combination of
the base's rows of these tokens becomes the new row. A small model trained on the same codes is a donor: what it
learned of a code's place among words carries over. Both tables are centred first, which the paper does not do: so the
mean that all rows share enters a new row once, whatever the weights add up to. Rows that the donor does not have begin
as `description` says.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unimodal.model.initialisers.description import average_words
from unimodal.model.initialisers.request import RowRequest

NUM_ANCHORS = 16  # the paper's k lies between 8 and 256; it matters little beyond 16 for a donor of small width
CHUNK = 1024


def transplant_rows(request: RowRequest) -> Tensor:
    """New rows [R, D] from `request.donor`. Raises ValueError without a donor, or for one of another shape."""
    donor = request.donor
    if donor is None:
        raise ValueError("initialiser 'omp' needs a donor model that has the same media tokens; name one with `donor`")
    if len(donor.rows) != request.num_rows or len(donor.anchors) != len(donor.anchor_rows) or not len(donor.anchors):
        raise ValueError(
            f"the donor has {len(donor.rows)} rows and {len(donor.anchors)} anchors for {request.num_rows} new rows; "
            "it must have one row each and at least one anchor"
        )
    rows = average_words(request)
    base = request.table.detach().float()[donor.anchor_rows]  # [A, D]
    anchors = donor.anchors.detach().float().to(base.device)
    base_mean, donor_mean = base.mean(0), anchors.mean(0)
    known = (~donor.rows.isnan().any(1)).nonzero().squeeze(1)
    for part in known.split(CHUNK):
        targets = donor.rows[part].detach().float().to(base.device) - donor_mean
        chosen, weights = fit_sparse_combination(targets, anchors - donor_mean, min(NUM_ANCHORS, len(anchors)))
        rows[part] = torch.einsum("nk,nkd->nd", weights, (base - base_mean)[chosen])
    # A donor of small width fits with large weights of both signs, whose sum may be far longer than any base row. So no
    # new row may lie farther from the mean than base rows do on average.
    usual = (request.list_used() - base_mean).norm(dim=1).mean()
    offsets = rows[known]
    offsets = offsets * (usual / offsets.norm(dim=1, keepdim=True).clamp_min(1e-6)).clamp_max(1)
    rows[known] = base_mean + offsets
    return rows


def fit_sparse_combination(
    targets: Tensor, anchors: Tensor, num_anchors: int, by_direction: bool = True
) -> tuple[Tensor, Tensor]:
    """Targets [n, E] as weighted sums of k of the anchors [A, E], by orthogonal matching pursuit.

    by_direction: pick the anchor of the smallest angle to what is left; else of the greatest product with it, as
    mergekit does. → indices of the anchors int64 [n, k], and their weights [n, k], fitted anew after each pick.
    """
    directions = torch.nn.functional.normalize(anchors, dim=1) if by_direction else anchors
    residual = targets
    chosen = torch.zeros(len(targets), 0, dtype=torch.int64, device=targets.device)
    weights = targets.new_zeros(len(targets), 0)
    for _ in range(num_anchors):
        score = (residual @ directions.T).abs()  # [n, A]
        score.scatter_(1, chosen, -1.0)
        chosen = torch.cat([chosen, score.argmax(1, keepdim=True)], 1)
        picked = anchors[chosen]  # [n, k, E]
        gram = picked @ picked.transpose(1, 2)  # [n, k, k]
        damping = 1e-6 * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] + 1e-12
        gram = gram + damping * torch.eye(chosen.shape[1], device=gram.device)
        weights = torch.linalg.solve(gram, (picked @ targets[:, :, None]))[..., 0]  # least squares on the picked
        residual = targets - torch.einsum("nk,nke->ne", weights, picked)
    return chosen, weights

"""Weights of few levels, which a file, or a repository that compresses what it keeps, holds in less.

New rows are tensors of a file in one of these ways:

    input           [R, D], floats; or int8, which `input_scale` float32 [R, 1] multiplies
    input_features  int8 [R, F], where the codes of a block have features
    input_table     float16 [F, D]: what codes with a feature have in common; features @ table is added to the rest

and the same for `output` on an untied base. Codes of a scalar quantizer are levels, so most of a row is what its levels
say (`structured_rows.py`), and what is left can do with few levels.

Shapes: R new rows, D width, F features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

FULL = 127  # levels on either side of 0
CLIPPED = tuple(share / 20 for share in range(8, 21))  # of a row's largest value: what larger ones are cut to


def pack_rows(side: str, table: Tensor, levels: int = FULL, features: Tensor | None = None) -> dict[str, Tensor]:
    """The rows [R, D] of a side → the tensors that hold them.

    levels: on either side of 0; up to 127. features: one-hot or other small whole numbers, [R, F]; None: the rows are
    stored as they are. Raises ValueError for levels out of range.
    """
    if not 1 <= levels <= FULL:
        raise ValueError(f"rows have 1 to {FULL} levels on either side of 0, not {levels}")
    found: dict[str, Tensor] = {}
    if features is not None and features.any():
        shared = _fit(table, features).half()
        found = {f"{side}_features": features.to(torch.int8).contiguous(), f"{side}_table": shared.contiguous()}
        table = table - features.float() @ shared.float()
    scale = _choose_scale(table, levels)
    found[side] = (table / scale).round().clamp(-levels, levels).to(torch.int8).contiguous()
    found[f"{side}_scale"] = scale.contiguous()
    return found


def unpack_rows(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The rows [R, D] of each side of a file, however it holds them."""
    found = {}
    for side in ("input", "output"):
        if side not in tensors:
            continue
        rows = tensors[side]
        if f"{side}_scale" in tensors:
            rows = rows.float() * tensors[f"{side}_scale"]
        if f"{side}_features" in tensors:
            rows = rows + tensors[f"{side}_features"].float() @ tensors[f"{side}_table"].float()
        found[side] = rows
    return found


def _fit(table: Tensor, features: Tensor) -> Tensor:
    """The table [F, D] that explains the rows [R, D] best; features that always go together share what they explain."""
    left = features.double()
    gram = left.T @ left
    gram += 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return torch.linalg.solve(gram, left.T @ table.double()).float()


def _choose_scale(table: Tensor, levels: int) -> Tensor:
    """The step [R, 1] of each row's levels: with few, large values are cut where that leaves the smallest error."""
    top = table.abs().amax(1, keepdim=True).clamp_min(1e-12)
    if levels == FULL:
        return top / FULL
    best, least = top / levels, torch.full_like(top, torch.inf)
    for share in CLIPPED:
        scale = top * share / levels
        error = ((table / scale).round().clamp(-levels, levels) * scale - table).square().sum(1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return best


def round_weights(weights: Tensor, levels: int) -> Tensor:
    """Rounds to float16 and, with ``levels``, each row of a matrix to multiples -levels … levels of a power of two.

    The file then compresses to less, in the history of a repository too.
    """
    if not levels or weights.ndim < 2:
        return weights.half()
    top = weights.float().abs().amax(dim=1, keepdim=True).clamp(min=2.0**-14)
    step = torch.exp2(torch.ceil(torch.log2(top / levels)))
    return ((weights.float() / step).round() * step).half()

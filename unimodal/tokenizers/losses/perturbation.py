"""Codes that are replaced by near ones before they are decoded, as a model that draws them errs (RobusTok, arXiv
2503.08354): what is decoded then learns to bear it.

Shapes: B batch, N positions, D width of a code, K codes of the table.
"""

from __future__ import annotations

import torch
from torch import Tensor


def perturb_values(
    z: Tensor,
    values: Tensor,
    table: Tensor,
    alpha: float,
    beta: float,
    delta: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Quantized vectors [B, N, D] in which the first ⌊beta · B⌋ items have been perturbed.

    In those, each code becomes, with probability alpha, one of the `delta` codes nearest to z, drawn evenly (the
    nearest among them), and else the nearest. z: the vectors before quantization [B, N, D], at the scale of `table`
    [K, D]; the gradient goes straight through to it. Raises ValueError for a delta that the table does not have.
    """
    if not 1 <= delta <= len(table):
        raise ValueError(f"delta is {delta}; give 1 to {len(table)}, the codes that there are")
    count = int(len(z) * beta)
    if not count or not alpha:
        return values
    shown = z[:count]
    distance = torch.cdist(shown.detach().float(), table.float().expand(count, *table.shape))  # [b, N, K]
    near = distance.topk(delta, dim=-1, largest=False).indices
    drawn = torch.randint(delta, near.shape[:2], generator=generator).to(z.device)
    kept = torch.rand(near.shape[:2], generator=generator).to(z.device) > alpha
    ids = near.gather(-1, torch.where(kept, 0, drawn).unsqueeze(-1)).squeeze(-1)
    replaced = shown + (table[ids].to(z.dtype) - shown).detach()
    return torch.cat([replaced, values[count:]])


def anneal(step: int, begin: int, end: int, last: float) -> float:
    """The share of alpha and delta at a step: 1 up to `begin`, then linear to `last` at `end`. (RobusTok's code goes to
    1 - `last` and jumps to `last`; the two are the same at 0.5, its default.)"""
    if step <= begin:
        return 1.0
    return last if step >= end else 1 + (last - 1) * (step - begin) / (end - begin)

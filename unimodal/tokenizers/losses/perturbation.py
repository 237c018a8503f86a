"""Codes that are replaced by near ones before they are decoded, as a model that draws them errs (RobusTok, arXiv
2503.08354): what is decoded then learns to bear it.

Shapes: B batch, N positions, D width of a code, K codes of the table.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unimodal.tokenizers.interface import MediaTokenizer
from unimodal.tokenizers.losses.settings import PerturbationSettings
from unimodal.tokenizers.parts.quantizers.interface import Quantized, Quantizer
from unimodal.tokenizers.systems.base import SystemModule


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


class Perturbation:
    """Perturbs what any quantizer of one codebook made, by settings, as training goes on.

    Distances are those of the table: where its rows have length 1, vectors are taken at length 1 too; where they have
    another width than the vectors, the quantized ones stand in for these.
    """

    def __init__(self, settings: PerturbationSettings) -> None:
        self.settings, self.step = settings, 0

    def __call__(self, quantizer: Quantizer, z: Tensor, made: Quantized) -> Quantized:
        """ValueError for a quantizer of several codes a position, and of more codes than can be listed."""
        settings, table = self.settings, list_table(quantizer)
        rate = 1.0 if settings.steps is None else anneal(self.step, *settings.steps, settings.last)
        if table.shape[1] != z.shape[2]:
            z = made.values
        elif torch.allclose(table.norm(dim=1), torch.ones(len(table)), atol=1e-3):
            z = normalize(z, dim=-1)
        near = min(len(table), max(1, round(settings.near * rate)))
        chance = settings.chance * rate
        values = perturb_values(z, made.values, table.to(z.device), chance, settings.share, near)
        return replace(made, values=values)


def list_table(quantizer: Quantizer) -> Tensor:
    """The vectors of the only codebook, float [K, D]. ValueError for several codebooks or levels, and for more codes
    than can be listed."""
    table = quantizer.make_table(0) if len(quantizer.codebook_sizes) == 1 and quantizer.num_levels == 1 else None
    if table is None:
        raise ValueError(f"perturbation is of codes of one listed codebook; {type(quantizer).__name__} has "
                         f"{len(quantizer.codebook_sizes)} of {max(quantizer.codebook_sizes):,}; leave "
                         "losses.perturbation out")  # fmt: skip
    return table


def check_perturbed(tokenizer: SystemModule) -> None:
    """ValueError for a tokenizer whose codes cannot be perturbed, and for one whose own settings perturb them."""
    family = tokenizer.config.family
    quantizer = dict(tokenizer.named_children()).get("quantizer")
    if not isinstance(tokenizer, MediaTokenizer) or not isinstance(quantizer, Quantizer):
        raise ValueError(f"{family} has no quantizer whose codes could be perturbed; leave losses.perturbation out")
    if tokenizer.perturbs_codes:
        raise ValueError(f"{family} perturbs its codes by its own setting perturbed_share; set it to 0 with tokenizer, "
                         "or leave losses.perturbation out")  # fmt: skip
    try:
        list_table(quantizer)
    except ValueError as error:
        raise ValueError(f"{family}: {error}") from None

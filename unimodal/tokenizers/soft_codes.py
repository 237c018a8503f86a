"""Soft codes (All in Tokens, arXiv 2301.02229): decode the mean of the codebook's vectors under a model's
probabilities, in place of the vector of the likeliest code. What lies between two codes can then be drawn.

Shapes: B batch, N positions, G groups, V values of a group, D quantized dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.interface import CodingOptions, Condition, MediaTokenizer
from unimodal.tokenizers.parts.quantizers.interface import Quantizer


def mix_codes(quantizer: Quantizer, probabilities: Sequence[Tensor], top: int | None = None) -> Tensor:
    """The mean vector of every position, float32 [B, N, D], with a gradient to the probabilities.

    probabilities: for each group float [B, N, V], of sum 1. top: only so many of the likeliest codes count, with
    their sum as 1. Groups are drawn apart from each other; where a position's vector is the sum or the row of its
    groups' vectors, as of products, residual codes and bits, this is its mean. ValueError for other sizes and for
    quantizers whose codes do not each belong to one position.
    """
    sizes = tuple(each.shape[-1] for each in probabilities)
    if sizes != quantizer.codebook_sizes:
        raise ValueError(f"there are probabilities of {sizes} codes; the quantizer has {quantizer.codebook_sizes}")
    num = probabilities[0].shape[1]
    if quantizer.count_codes(num) != num:
        raise ValueError("codes of several scales have no vectors of their own; decode the likeliest codes")
    device = probabilities[0].device
    still = torch.zeros(1, 1, len(sizes), dtype=torch.int64, device=device)
    base = quantizer.look_up(still)[0, 0]
    mean = base.expand(*probabilities[0].shape[:2], -1)
    for group, (each, size) in enumerate(zip(probabilities, sizes, strict=True)):
        if top is not None and top < size:
            likeliest = each.topk(top, -1)
            each = torch.zeros_like(each).scatter(-1, likeliest.indices, likeliest.values)
            each = each / each.sum(-1, keepdim=True)
        ids = still.repeat(1, size, 1)
        ids[0, :, group] = torch.arange(size, device=device)
        mean = mean + each.float() @ (quantizer.look_up(ids)[0] - base)
    return mean


def decode_soft(
    tokenizer: MediaTokenizer,
    probabilities: Sequence[Tensor],
    codes: Codes | None = None,
    condition: Condition | None = None,
    noise: Tensor | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    top: int | None = None,
) -> Tensor:
    """What ``decode`` makes of the mean vectors of `mix_codes`, float [B, C, …], with a gradient to the probabilities.

    codes: whose mask, grid and order hold; their ids do not count. By default all positions are real. The other
    arguments are those of ``decode``. ValueError for a tokenizer that does not look its codes up in one quantizer.
    """
    found = [part for part in tokenizer.children() if isinstance(part, Quantizer)]
    if len(found) != 1 or found[0].codebook_sizes != tokenizer.codebook_sizes:
        raise ValueError(
            f"the {tokenizer.config.family} tokenizer does not look its codes up in one quantizer with its codebooks "
            f"{tokenizer.codebook_sizes}; decode the likeliest codes"
        )
    rows = mix_codes(found[0], probabilities, top)
    batch, num = rows.shape[:2]
    if codes is None:
        codes = Codes.whole(torch.zeros(batch, num, len(probabilities), dtype=torch.int64, device=rows.device))
    if tuple(codes.mask.shape) != (batch, num):
        raise ValueError(f"probabilities of {batch}×{num} positions do not fit codes of {tuple(codes.mask.shape)}")
    if noise is None and "noise" in tokenizer.decode_settings:
        noise = tokenizer.draw_noise(codes, [0] * batch)
    places = torch.arange(batch * num, device=rows.device).view(batch, num, 1).expand_as(codes.ids)
    lent = Codes(places.contiguous(), codes.mask, codes.grid, codes.order)
    with found[0].lend_rows(rows.flatten(0, 1)):
        return tokenizer.decode_batch(lent, CodingOptions(condition, noise, steps, guidance))

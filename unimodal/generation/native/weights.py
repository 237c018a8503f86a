"""Weights in the blocks that `products.h` reads.

Shapes: N outputs, K inputs, B blocks of 16 outputs, G groups of 32 inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.generation.packing import GROUP, quantise_int4, quantise_int8

#: kinds of weights → their numbers in `products.h`
KINDS = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3}
BLOCK = 16


def pack_blocks(weight: Tensor, kind: str) -> Tensor:
    """weight [N, K] → bytes, uint8, a row for each block."""
    weight = F.pad(weight.float(), (0, 0, 0, -len(weight) % BLOCK))
    if kind in ("float32", "bfloat16"):
        padded = F.pad(weight, (0, weight.shape[1] % 2)) if kind == "bfloat16" else weight
        blocks = padded.unflatten(0, (-1, BLOCK)).transpose(1, 2)  # [B, K, 16]
        if kind == "bfloat16":
            pairs = blocks.unflatten(1, (-1, 2)).transpose(2, 3)  # [B, K / 2, 16, 2]
            return _as_bytes(pairs.contiguous().bfloat16())
        return _as_bytes(blocks.contiguous())
    weight = F.pad(weight, (0, -weight.shape[1] % GROUP))
    whole, scales = (quantise_int8 if kind == "int8" else quantise_int4)(weight, GROUP)
    quads = whole.view(len(whole) // BLOCK, BLOCK, -1, 8, 4).permute(0, 2, 3, 1, 4)  # [B, G, 8, 16, 4]
    if kind == "int4":
        quads = quads[:, :, :4] | quads[:, :, 4:] << 4
    sizes = scales.half().unflatten(0, (-1, BLOCK)).transpose(1, 2)  # [B, G, 16]
    parts = [part.contiguous().view(torch.uint8).flatten(2) for part in (quads, sizes)]
    return torch.cat(parts, 2).flatten(1).contiguous()


def _as_bytes(blocks: Tensor) -> Tensor:
    return blocks.view(torch.uint8).flatten(1)


def pack_vector(x: Tensor) -> Tensor:
    """A bias [N] as float32 with zeros up to a whole block."""
    return F.pad(x.float(), (0, -len(x) % BLOCK)).contiguous()


def interleave(gate: Tensor, up: Tensor) -> Tensor:
    """Rows of gate and up [F, …] → blocks of 8 of the one and 8 of the other, zeros at the end."""
    half = BLOCK // 2
    padding = [0, 0] * (gate.dim() - 1) + [0, -len(gate) % half]
    pairs = [F.pad(part, padding).unflatten(0, (-1, half)) for part in (gate, up)]
    return torch.stack(pairs, 1).flatten(0, 2)

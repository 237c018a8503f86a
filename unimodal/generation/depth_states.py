"""The states from which the codes of summed positions are scored, for positions that are known.

Shapes: N positions, M rows of the vocabulary (the codes of all positions), P summed positions, G the most codes of a
position, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unimodal.generation.parts import EngineParts
from unimodal.vocabulary.positions import Position


def compute_code_states(parts: EngineParts, before: Tensor, positions: Sequence[Position]) -> Tensor:
    """Decoder states [N, D] before each of N positions → the state before each of their rows, [M, D]."""
    summed = [index for index, one in enumerate(positions) if isinstance(one, tuple)]
    if parts.depth is None or parts.embed is None or not summed:
        return before
    width = parts.depth.num_codes
    sizes = [len(one) if isinstance(one, tuple) else 1 for one in positions]
    codes = torch.zeros(len(summed), width - 1, dtype=torch.int64)
    for number, index in enumerate(summed):
        one = positions[index]
        assert isinstance(one, tuple)
        codes[number, : len(one) - 1] = torch.tensor(one[:-1], dtype=torch.int64)  # causal: what is behind is not seen
    behind = parts.depth(before[summed], parts.embed(codes.to(before.device)))  # [P, G - 1, D]
    every = before[:, None].expand(-1, width, -1).clone()  # [N, G, D]
    every[summed, 1:] = behind
    there = torch.arange(width) < torch.tensor(sizes)[:, None]  # [N, G]
    return every[there.to(before.device)]

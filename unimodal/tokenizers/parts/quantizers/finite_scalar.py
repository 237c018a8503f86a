"""Finite scalar quantization: each dimension is bounded and rounded to one of a few levels (arXiv 2309.15505).

Shapes: B batch, N tokens, D quantized dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import embedding
from vector_quantize_pytorch import FSQ

from unimodal.tokenizers.parts.quantizers.interface import (
    Quantized,
    QuantizeOptions,
    Quantizer,
    leave_autocast,
    pass_straight_through,
)


def list_levels(levels: Sequence[int]) -> Tensor:
    """Which level of each dimension every code stands for, int64 [size, D]; dimension 0 is the fastest."""
    ids = torch.arange(prod(levels))
    basis = torch.cumprod(torch.tensor([1, *levels[:-1]]), 0)
    return (ids.unsqueeze(-1) // basis) % torch.tensor(tuple(levels))


class FiniteScalarQuantizer(Quantizer):
    """Finite scalar quantization (Mentzer et al., arXiv 2309.15505) over the library's ``FSQ``.

    The library's module bounds and rounds; this wrapper pins the arithmetic of ids to float32 and int64 (in bfloat16
    about half of all ids come out wrong) and offers the straight-through values and the ids separately.
    """

    def __init__(self, levels: tuple[int, ...], reach: float | None = None):
        """reach: how much of the way to the outermost levels tanh goes, in place of the library's 1.001; for odd levels
        (S3Tokenizer has 0.999). ValueError for fewer than 2 levels, and for even ones with a reach."""
        if not levels or min(levels) < 2:
            raise ValueError(f"levels are {list(levels)}; give each dimension 2 or more")
        if reach is not None and any(count % 2 == 0 for count in levels):
            raise ValueError(f"levels are {list(levels)}; those with a reach are odd")
        super().__init__()
        self.levels: tuple[int, ...] = tuple(levels)
        self.num_dims, self.codebook_sizes = len(self.levels), (prod(self.levels),)
        self.reach = reach
        with torch.device("cpu"):  # it computes with its constants, also where the rest is built without storage
            self.fsq = FSQ(list(levels))

    @property
    def codebook_size(self) -> int:
        return self.codebook_sizes[0]

    def quantize_batch(self, z: Tensor, mask: Tensor | None, options: QuantizeOptions) -> Quantized:
        values, ids = self.quantize(z)
        return Quantized(values, ids.unsqueeze(-1), z.new_zeros(()), values.detach())

    def look_up_batch(self, ids: Tensor) -> Tensor:
        return self.to_values(ids[..., 0])

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z: [B, N, D] → (quantized float32 [B, N, D] in [-1, 1] with straight-through gradient, ids int64 [B, N])."""
        with leave_autocast(z.device):
            quantized = self.fsq.quantize(z.float()) if self.reach is None else self._round(z.float(), self.reach)
            return quantized, self.to_ids(quantized.detach())

    def _round(self, z: Tensor, reach: float) -> Tensor:
        """Values in [-1, 1] of odd levels, with the gradient of tanh."""
        half = (torch.tensor(self.levels, device=z.device) - 1) / 2
        bounded = z.tanh() * reach * half
        return pass_straight_through(bounded, bounded.round()) / half

    def to_ids(self, quantized: Tensor) -> Tensor:
        """Quantized values [..., D] → int64 [...]."""
        return self.fsq.codes_to_indices(quantized.float()).round().long()

    def to_values(self, ids: Tensor) -> Tensor:
        """int64 [...] → quantized values float32 [..., D]; the exact inverse of ``to_ids``."""
        table = self.fsq.implicit_codebook
        if table.dtype == torch.float32:  # coarser where the whole network was cast to half precision
            return embedding(ids.long(), table)
        return self.fsq.indices_to_codes(ids.long().reshape(1, -1)).reshape(*ids.shape, self.num_dims).float()

    def make_table(self, group: int = 0) -> Tensor:
        """The values of every code, float32 [size, D] on the CPU."""
        device = self.fsq.implicit_codebook.device
        return self.to_values(torch.arange(self.codebook_size, device=device)).cpu()

    def to_levels(self, ids: Tensor) -> Tensor:
        """int64 [...] → which level of each dimension, int64 [..., D]; ids = Σ level_d · Π_{e<d} levels_e."""
        basis = torch.cumprod(torch.tensor([1, *self.levels[:-1]]), 0).to(ids.device)
        return (ids.unsqueeze(-1) // basis) % torch.tensor(self.levels, device=ids.device)

"""One index into several tables: a code says what a place means and how it looks (TokenFlow, arXiv 2412.03069).

Shapes: B batch, N positions, D = Σ d dimensions of the T tables, C codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from unimodal.tokenizers.parts.quantizers.entropy import measure_entropy
from unimodal.tokenizers.parts.quantizers.interface import (
    Quantized,
    QuantizeOptions,
    Quantizer,
    average_real,
    pass_straight_through,
)


class SharedIndexQuantizer(Quantizer):
    """T tables [C, d] that share their index: a vector is cut into T parts, and its code is the row number for which
    the weighted sum of the parts' squared distances is least.

    normalize: parts and rows are scaled to length 1, each part by itself, and what comes out has rows of length 1.
    Loss: ‖sg(z) − e‖² + commitment · ‖z − sg(e)‖² on the scaled parts, the mean over real positions, and in
    training entropy_weight · entropy of the softmax of negative distances.
    """

    def __init__(
        self,
        codebook_size: int,
        part_dims: Sequence[int],
        weights: Sequence[float] | None = None,
        normalize: bool = True,
        commitment: float = 1.0,
        entropy_weight: float = 0.0,
        temperature: float = 0.01,
    ):
        super().__init__()
        self.part_dims, self.num_dims, self.codebook_sizes = tuple(part_dims), sum(part_dims), (codebook_size,)
        self.weights = tuple(weights) if weights is not None else (1.0,) * len(self.part_dims)
        if len(self.weights) != len(self.part_dims):
            raise ValueError(f"weights are one number for each of {len(self.part_dims)} parts; got {len(self.weights)}")
        self.normalize, self.commitment = normalize, commitment
        self.entropy_weight, self.temperature = entropy_weight, temperature
        bound = 1 / codebook_size
        tables = [torch.empty(codebook_size, dims).uniform_(-bound, bound) for dims in self.part_dims]
        self.codebooks = nn.ParameterList(scale_rows(table) if normalize else table for table in tables)

    @property
    def rows(self) -> Tensor:
        """The tables side by side as they come out, [C, D], with gradient."""
        tables = [table.float() for table in self.codebooks]
        return torch.cat([scale_rows(table) for table in tables] if self.normalize else tables, dim=-1)

    def scale_parts(self, z: Tensor) -> Tensor:
        """[..., D] → the same with each part of length 1, where this quantizer normalizes."""
        return torch.cat([scale_rows(part) for part in z.split(self.part_dims, dim=-1)], -1) if self.normalize else z

    def measure_distances(self, z: Tensor) -> Tensor:
        """z: [..., D], scaled → the weighted sum of the parts' squared distances to every row, [..., C]."""
        pairs = zip(self.weights, z.split(self.part_dims, dim=-1), self.rows.split(self.part_dims, dim=-1), strict=True)
        parts = [
            weight * (part.square().sum(-1, keepdim=True) + rows.square().sum(-1) - 2 * part @ rows.T)
            for weight, part, rows in pairs
        ]
        return torch.stack(parts).sum(0)

    def quantize_batch(self, z: Tensor, mask: Tensor | None, options: QuantizeOptions) -> Quantized:
        z = self.scale_parts(z)
        with torch.no_grad():
            ids = self.measure_distances(z).argmin(-1)
        rows = self.rows[ids]
        loss = average_real((rows - z.detach()).square(), mask)
        loss = loss + self.commitment * average_real((z - rows.detach()).square(), mask)
        loss = loss + self.regularize(z, mask)
        return Quantized(pass_straight_through(z, rows), ids.unsqueeze(-1), loss, rows)

    def regularize(self, z: Tensor, mask: Tensor | None) -> Tensor:
        if not self.entropy_weight or not self.training:
            return z.new_zeros(())
        logits = -self.measure_distances(self.scale_parts(z)) / self.temperature
        return self.entropy_weight * measure_entropy(logits, mask).make_loss()

    def look_up_batch(self, ids: Tensor) -> Tensor:
        return self.rows[ids[..., 0]]

    def look_up_part(self, ids: Tensor, part: int) -> Tensor:
        """ids: int64 [..., 1] → the rows of one table, float32 [..., d]."""
        return self.look_up(ids).split(self.part_dims, dim=-1)[part]

    def make_table(self, group: int = 0) -> Tensor | None:
        return self.rows.detach().cpu()


def scale_rows(rows: Tensor) -> Tensor:
    """[..., d] → the same of length 1."""
    return normalize(rows, dim=-1)

"""A quantizer of few dimensions between two maps (ViT-VQGAN, arXiv 2110.04627): wide vectors are searched in a narrow
space, as in DAC (arXiv 2306.06546), SNAC and MOSS-Audio-Tokenizer.

Shapes: B batch, N positions, D dimensions outside the maps, d inside, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from unimodal.tokenizers.parts.quantizers.interface import Quantized, QuantizeOptions, Quantizer


class PointConv(nn.Conv1d):
    """A convolution over one step, of vectors [..., D]: a linear map that is stored as a convolution."""

    def __init__(self, num_in: int, num_out: int):
        super().__init__(num_in, num_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight[..., 0], self.bias)


class ProjectedQuantizer(Quantizer):
    """map_in: [..., D] → [..., d]; map_out: back. By default convolutions of one step with weight normalisation, as DAC
    has them. num_dims: D.

    The gradient of values passes the book straight through and both maps; that of rows ends at the book's.
    """

    def __init__(
        self, book: Quantizer, num_dims: int, map_in: nn.Module | None = None, map_out: nn.Module | None = None
    ):
        super().__init__()
        self.book, self.num_dims = book, num_dims
        self.in_proj = map_in or weight_norm(PointConv(num_dims, book.num_dims))
        self.out_proj = map_out or weight_norm(PointConv(book.num_dims, num_dims))
        self.codebook_sizes, self.num_levels = book.codebook_sizes, book.num_levels

    def draw_kept(self, batch: int, generator: torch.Generator | None = None) -> Tensor | None:
        return self.book.draw_kept(batch, generator)

    def count_codes(self, num_positions: int) -> int:
        return self.book.count_codes(num_positions)

    def quantize_batch(self, z: Tensor, mask: Tensor | None, options: QuantizeOptions) -> Quantized:
        found = self.book.quantize_batch(self.in_proj(z), mask, options)
        return Quantized(self.out_proj(found.values), found.ids, found.loss, self.out_proj(found.rows), found.numbers)

    def learn_from(self, z: Tensor, ids: Tensor, generator: torch.Generator | None) -> None:
        with torch.no_grad():
            self.book.learn_from(self.in_proj(z), ids, generator)

    def look_up_batch(self, ids: Tensor) -> Tensor:
        out: Tensor = self.out_proj(self.book.look_up(ids))
        return out

    def make_table(self, group: int = 0) -> Tensor | None:
        rows = self.book.make_table(group)
        if rows is None or len(self.codebook_sizes) > 1:
            return rows
        with torch.inference_mode():
            return self.out_proj(rows.to(next(self.parameters()).device)).cpu()

"""Split quantization: one quantizer for meaning and one for the rest read the same vectors, and what they give is added
up (Mimi in Moshi, arXiv 2410.00037). DualToken, whose two read different features, is a `ProductQuantizer` of two
residual ones.

Shapes: B batch, N positions, D dimensions, d of a quantizer, G groups of both.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unimodal.tokenizers.parts.quantizers.interface import Quantized, QuantizeOptions, Quantizer


class SplitQuantizer(Quantizer):
    """`semantic` and `rest` quantize the same vectors side by side, not what the other left over, so that a loss on the
    first shapes its codes alone; values = projected semantic + projected rest. The groups of `semantic` come first and
    decode alone.

    num_dims: the vectors' width; where it is not the quantizers', linear maps without bias lead in and out, as in Mimi.
    The levels of `rest` are what `kept` counts. Loss: the mean of both.
    """

    def __init__(self, semantic: Quantizer, rest: Quantizer, num_dims: int | None = None):
        super().__init__()
        self.semantic, self.rest = semantic, rest
        self.num_dims = num_dims or semantic.num_dims
        if num_dims is None and semantic.num_dims != rest.num_dims:
            raise ValueError(
                f"semantic has {semantic.num_dims} dimensions and rest {rest.num_dims}; "
                "give num_dims, the vectors' width"
            )
        self.codebook_sizes = semantic.codebook_sizes + rest.codebook_sizes
        self.num_levels = rest.num_levels
        self.semantic_in, self.semantic_out = self._make_maps(semantic)
        self.rest_in, self.rest_out = self._make_maps(rest)

    def _make_maps(self, part: Quantizer) -> tuple[nn.Module, nn.Module]:
        if part.num_dims == self.num_dims:
            return nn.Identity(), nn.Identity()
        return (
            nn.Linear(self.num_dims, part.num_dims, bias=False),
            nn.Linear(part.num_dims, self.num_dims, bias=False),
        )

    def draw_kept(self, batch: int, generator: torch.Generator | None = None) -> Tensor | None:
        return self.rest.draw_kept(batch, generator)

    def quantize_batch(self, z: Tensor, mask: Tensor | None, options: QuantizeOptions) -> Quantized:
        own = QuantizeOptions(options.generator, learn=options.learn)
        first = self.semantic.quantize_batch(self.semantic_in(z), mask, own)
        second = self.rest.quantize_batch(self.rest_in(z), mask, options)
        if first.ids.shape[1] != second.ids.shape[1]:
            raise ValueError("semantic and rest give codes at the same positions")
        return Quantized(
            self.semantic_out(first.values) + self.rest_out(second.values),
            torch.cat([first.ids, second.ids], -1),
            (first.loss + second.loss) / 2,
            self.semantic_out(first.rows) + self.rest_out(second.rows),
        )

    def look_up_batch(self, ids: Tensor) -> Tensor:
        """ids: int64 [..., G'], those of `semantic` at least → float32 [..., D]."""
        groups = len(self.semantic.codebook_sizes)
        values: Tensor = self.semantic_out(self.semantic.look_up(ids[..., :groups]))
        if ids.shape[-1] == groups:
            return values
        return values + self.rest_out(self.rest.look_up(ids[..., groups:]))

    def make_table(self, group: int = 0) -> Tensor | None:
        groups = len(self.semantic.codebook_sizes)
        return self.semantic.make_table(group) if group < groups else self.rest.make_table(group - groups)

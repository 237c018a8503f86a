"""Product quantization: the dimensions are cut into parts, each with a quantizer of its own (Jégou et al., 2011;
UniTok, arXiv 2502.20321; XQ-GAN, 2412.01762; DualToken, 2503.14324: two residual parts, meaning first).

Shapes: B batch, N positions, D = Σ d dimensions of the parts, M positions of codes, G groups of all parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unimodal.tokenizers.parts.quantizers.interface import Quantized, QuantizeOptions, Quantizer


class ProductQuantizer(Quantizer):
    """Consecutive dimensions for each part, any quantizer; ids side by side in the order of the parts.

    Loss: the mean of the parts' losses. Parts that drop levels in training keep the same number, drawn by the first
    (XQ-GAN), where they have as many levels.
    """

    def __init__(self, parts: Sequence[Quantizer]):
        super().__init__()
        if not parts:
            raise ValueError("a product needs at least one part")
        self.parts = nn.ModuleList(parts)
        self.part_dims = tuple(part.num_dims for part in parts)
        self.num_dims = sum(self.part_dims)
        self.codebook_sizes = tuple(size for part in parts for size in part.codebook_sizes)
        self.part_groups = tuple(len(part.codebook_sizes) for part in parts)
        levels = {part.num_levels for part in parts}
        self.num_levels = levels.pop() if len(levels) == 1 else 1

    def list_parts(self) -> list[Quantizer]:
        """The parts in order."""
        return [part for part in self.parts if isinstance(part, Quantizer)]

    def draw_kept(self, batch: int, generator: torch.Generator | None = None) -> Tensor | None:
        return self.list_parts()[0].draw_kept(batch, generator) if self.num_levels > 1 else None

    def count_codes(self, num_positions: int) -> int:
        return self.list_parts()[0].count_codes(num_positions)

    def quantize_batch(self, z: Tensor, mask: Tensor | None, options: QuantizeOptions) -> Quantized:
        if len({part.count_codes(z.shape[1]) for part in self.list_parts()}) > 1:
            raise ValueError("the parts of a product give codes at the same positions")
        found = []
        for part, values in zip(self.list_parts(), z.split(self.part_dims, dim=-1), strict=True):
            kept = options.kept
            if kept is None and self.training:
                kept = part.draw_kept(len(z), options.generator)
            found.append(part.quantize_batch(values, mask, QuantizeOptions(options.generator, kept, options.learn)))
        return Quantized(
            torch.cat([each.values for each in found], -1),
            torch.cat([each.ids for each in found], -1),
            torch.stack([each.loss for each in found]).mean(),
            torch.cat([each.rows for each in found], -1),
        )

    def learn_from(self, z: Tensor, ids: Tensor, generator: torch.Generator | None) -> None:
        pieces = zip(self.list_parts(), z.split(self.part_dims, -1), ids.split(self.part_groups, -1), strict=True)
        for part, vectors, own in pieces:
            part.learn_from(vectors, own, generator)

    def regularize(self, z: Tensor, mask: Tensor | None) -> Tensor:
        pieces = zip(self.list_parts(), z.split(self.part_dims, -1), strict=True)
        return torch.stack([part.regularize(values, mask) for part, values in pieces]).mean()

    def split_parts(self, ids: Tensor) -> tuple[Tensor, ...]:
        """ids: int64 [..., G] → those of each part."""
        if ids.shape[-1] != len(self.codebook_sizes):
            raise ValueError(f"a product is looked up by all {len(self.codebook_sizes)} groups; got {ids.shape[-1]}")
        return ids.split(self.part_groups, dim=-1)

    def look_up_batch(self, ids: Tensor) -> Tensor:
        pieces = zip(self.list_parts(), self.split_parts(ids), strict=True)
        return torch.cat([part.look_up(own) for part, own in pieces], dim=-1)

    def make_table(self, group: int = 0) -> Tensor | None:
        for part, groups in zip(self.list_parts(), self.part_groups, strict=True):
            if group < groups:
                return part.make_table(group)
            group -= groups
        raise ValueError(f"there are {len(self.codebook_sizes)} groups; no group so far on")

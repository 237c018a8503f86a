"""Residual quantization at several rates (SNAC, arXiv 2410.14411): a coarse book quantizes the mean of several steps,
and finer ones what that leaves over.

Shapes: B batch, N positions, F frames of the coarsest book, D dimensions, L levels, G codes of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.parts.quantizers.interface import (
    Quantized,
    QuantizeOptions,
    Quantizer,
    draw_kept_levels,
)
from unimodal.tokenizers.streams import InterleavedStreams


class StridedResidualQuantizer(Quantizer):
    """Level after level: the mean of each `strides[l]` positions is quantized by `books[l]` and repeated.

    The codes of a frame of strides[0] positions are the groups of one place, in the order of `InterleavedStreams`: for
    strides (4, 2, 1) 0 1 2 2 1 2 2, the order of Orpheus. dropout: in training, with this probability an item keeps a
    uniform number of levels. The gradient passes through every level, as in DAC. Loss: the mean of the levels'.
    """

    def __init__(self, books: Sequence[Quantizer], strides: Sequence[int], dropout: float = 0.0):
        super().__init__()
        if len(books) != len(strides) or any(strides[0] % stride for stride in strides):
            raise ValueError(f"strides are one for each of {len(books)} books and divide the first; got {strides}")
        self.books, self.strides, self.dropout = nn.ModuleList(books), tuple(strides), dropout
        self.num_dims, self.num_levels = books[0].num_dims, len(books)
        self.layout = InterleavedStreams(tuple(strides[0] // stride for stride in strides))
        self.codebook_sizes = self.layout.sizes([book.codebook_sizes for book in books])

    def book(self, level: int) -> Quantizer:
        """The book of a level."""
        chosen = self.books[level]
        assert isinstance(chosen, Quantizer)
        return chosen

    def count_codes(self, num_positions: int) -> int:
        return num_positions // self.strides[0]

    def draw_kept(self, batch: int, generator: torch.Generator | None = None) -> Tensor | None:
        return draw_kept_levels(batch, self.num_levels, self.dropout, 1, generator)

    def quantize_batch(self, z: Tensor, mask: Tensor | None, options: QuantizeOptions) -> Quantized:
        """ValueError for a number of positions that is no multiple of strides[0]."""
        if z.shape[1] % self.strides[0]:
            raise ValueError(f"positions come in frames of {self.strides[0]}; got {z.shape[1]}")
        real = torch.ones(z.shape[:2], dtype=torch.bool, device=z.device) if mask is None else mask
        left, values, rows, loss = z, torch.zeros_like(z), torch.zeros_like(z), z.new_zeros(())
        streams = []
        for level, stride in enumerate(self.strides):
            pooled = left.unflatten(1, (-1, stride)).mean(2)
            counted = real[:, ::stride]
            if options.kept is not None:
                counted = counted & (level < options.kept)[:, None]
            found = self.book(level).quantize_batch(pooled, counted, options)
            share = counted if options.kept is not None else torch.ones_like(counted)
            own = (found.values * share[..., None]).repeat_interleave(stride, 1)
            values, left = values + own, left - own
            rows = rows + (found.rows * share[..., None]).repeat_interleave(stride, 1)
            loss = loss + found.loss * counted.sum() / real[:, ::stride].sum().clamp(min=1) / self.num_levels
            streams.append(Codes.whole(found.ids))
        return Quantized(values, self.layout.join(streams).ids, loss, rows)

    def list_coarser(self) -> tuple[tuple[int, ...], ...]:
        """The codes of a frame that the first 1, 2, … levels have, without those of all."""
        every = self.num_levels
        return tuple(
            self.layout.choose_groups([int(level < kept) for level in range(every)]) for kept in range(1, every)
        )

    def look_up_batch(self, ids: Tensor) -> Tensor:
        """ids: int64 [B, F, G], all codes of each frame, or those of the first levels → float32 [B, F · strides[0], D].
        ValueError for another number of codes."""
        counts = [len(groups) for groups in self.list_coarser()]
        kept = counts.index(ids.shape[-1]) + 1 if ids.shape[-1] in counts else self.num_levels
        layout = InterleavedStreams(self.layout.rates[:kept])
        values: list[Tensor] = []
        for level, stream in enumerate(layout.split(Codes.whole(ids))):
            values.append(self.book(level).look_up(stream.ids).repeat_interleave(self.strides[level], 1))
        return torch.stack(values).sum(0)

    def make_table(self, group: int = 0) -> Tensor | None:
        level, _, own = self.layout.places[group]
        return self.book(level).make_table(own)

"""Residual quantization: each book quantizes what the ones before it left over (SoundStream, arXiv 2107.03312).

Shapes: B batch, N positions, D dimensions, L levels, G groups of all levels, g of one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unimodal.tokenizers.parts.quantizers.interface import (
    Quantized,
    QuantizeOptions,
    Quantizer,
    draw_kept_levels,
    pass_straight_through,
    select_real,
)


class ResidualQuantizer(Quantizer):
    """Level after level; the first levels alone decode to a coarser vector.

    books: one for each level, or a single one that all `num_levels` share (RQ-VAE, DualToken).
    dropout, fewest_kept: with this probability an item keeps a uniform number of levels from fewest_kept on, in
    training; drawn for every item. Levels that an item does not keep count in no loss and teach no book; their ids are
    given all the same.
    Loss: the mean of the levels' own, weighted by how many positions kept them. The gradient passes to the vectors
    once, past all levels (audiocraft; vector-quantize-pytorch passes it at each level); with `through_levels` through
    every one, so that maps within the books learn from what is decoded (DAC).
    """

    def __init__(
        self,
        books: Sequence[Quantizer],
        num_levels: int | None = None,
        dropout: float = 0.0,
        fewest_kept: int = 1,
        through_levels: bool = False,
    ):
        super().__init__()
        if not books or (num_levels is not None and len(books) not in (1, num_levels)):
            raise ValueError(f"residual levels need one book each, or one for all; got {len(books)} for {num_levels}")
        if len({book.num_dims for book in books}) > 1:
            raise ValueError(f"all books have one width; got {', '.join(str(book.num_dims) for book in books)}")
        if any(book.num_levels > 1 for book in books):
            raise ValueError("a residual level is a book of one level")
        self.books, self.num_levels = nn.ModuleList(books), num_levels or len(books)
        self.through_levels = through_levels
        if not 1 <= fewest_kept <= self.num_levels:
            raise ValueError(f"fewest_kept is from 1 to {self.num_levels} levels; got {fewest_kept}")
        self.num_dims, self.dropout, self.fewest_kept = books[0].num_dims, dropout, fewest_kept
        levels = [self.book(level) for level in range(self.num_levels)]
        self.codebook_sizes = tuple(size for book in levels for size in book.codebook_sizes)

    def book(self, level: int) -> Quantizer:
        """The book of a level."""
        chosen = self.books[level if len(self.books) > 1 else 0]
        assert isinstance(chosen, Quantizer)
        return chosen

    def draw_kept(self, batch: int, generator: torch.Generator | None = None) -> Tensor | None:
        return draw_kept_levels(batch, self.num_levels, self.dropout, self.fewest_kept, generator)

    def quantize_batch(self, z: Tensor, mask: Tensor | None, options: QuantizeOptions) -> Quantized:
        real = torch.ones(z.shape[:2], dtype=torch.bool, device=z.device) if mask is None else mask
        own = QuantizeOptions(options.generator, learn=False)
        left, total, loss = z, torch.zeros_like(z), z.new_zeros(())
        passed = torch.zeros_like(z)
        ids: list[Tensor] = []
        lessons: list[tuple[Tensor, Tensor]] = []
        for level in range(self.num_levels):
            counted = real if options.kept is None else real & (level < options.kept)[:, None]
            found = self.book(level).quantize_batch(left, counted, own)
            loss = loss + found.loss * counted.sum() / real.sum().clamp(min=1) / self.num_levels
            lessons.append((select_real(left.detach(), counted), select_real(found.ids, counted)))
            ids.append(found.ids)
            share = counted[..., None] if options.kept is not None else torch.ones_like(counted[..., None])
            total = total + found.rows * share
            if self.through_levels:
                passed = passed + found.values * share
            left = left - (found.values if self.through_levels else found.rows.detach())
        if options.learn:
            self._teach(lessons, options.generator)
        values = passed if self.through_levels else pass_straight_through(z, total)
        return Quantized(values, torch.cat(ids, -1), loss, total)

    def _teach(self, lessons: list[tuple[Tensor, Tensor]], generator: torch.Generator | None) -> None:
        """A shared book learns once from all levels; others each from their own."""
        if len(self.books) == 1:
            lessons = [(torch.cat([z for z, _ in lessons]), torch.cat([ids for _, ids in lessons]))]
        for level, (vectors, ids) in enumerate(lessons):
            self.book(level).learn_from(vectors, ids, generator)

    def look_up_batch(self, ids: Tensor) -> Tensor:
        """ids: int64 [..., G'], the codes of the first levels → float32 [..., D]. ValueError for a level in part."""
        return self.look_up_levels(ids)[-1]

    def look_up_levels(self, ids: Tensor) -> Tensor:
        """ids: int64 [..., G'] of the first levels → the vector after each of them, float32 [L', ..., D]."""
        totals: list[Tensor] = []
        at = 0
        while at < ids.shape[-1]:
            if len(totals) == self.num_levels:
                raise ValueError(f"there are codes of {len(self.codebook_sizes)} books; got {ids.shape[-1]}")
            book = self.book(len(totals))
            part = ids[..., at : at + len(book.codebook_sizes)]
            if part.shape[-1] < len(book.codebook_sizes):
                raise ValueError(f"codes of whole levels are looked up; got {ids.shape[-1]} groups")
            rows = book.look_up(part)
            totals.append(totals[-1] + rows if totals else rows)
            at += part.shape[-1]
        if not totals:
            raise ValueError("codes of at least one level are looked up; got none")
        return torch.stack(totals)

    def make_table(self, group: int = 0) -> Tensor | None:
        for level in range(self.num_levels):
            count = len(self.book(level).codebook_sizes)
            if group < count:
                return self.book(level).make_table(group)
            group -= count
        raise ValueError(f"there are {len(self.codebook_sizes)} groups; no group so far on")

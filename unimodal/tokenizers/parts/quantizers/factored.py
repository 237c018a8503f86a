"""A large code as several small ones: 2^18 as (2^6, 2^12), 262,144 rows as (512, 512); no group of a tokenizer here has
more than 65,536 values.

Shapes: G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from unimodal.tokenizers.parts.quantizers.interface import Quantized, QuantizeOptions, Quantizer


class FactoredQuantizer(Quantizer):
    """The one code of `book`, an id below C, written in mixed radix: id = group 0 + sizes[0] · (group 1 + …), the first
    group fastest, as Open-MAGVIT2 splits its code. sizes: their product is C."""

    def __init__(self, book: Quantizer, sizes: Sequence[int]):
        super().__init__()
        if len(book.codebook_sizes) != 1:
            raise ValueError(f"one code is split into groups; {type(book).__name__} has {len(book.codebook_sizes)}")
        if prod(sizes) != book.codebook_sizes[0] or min(sizes) < 2:
            raise ValueError(f"the sizes of groups multiply to {book.codebook_sizes[0]}; got {tuple(sizes)}")
        self.book, self.num_dims, self.codebook_sizes = book, book.num_dims, tuple(sizes)
        self.num_levels = book.num_levels

    def draw_kept(self, batch: int, generator: torch.Generator | None = None) -> Tensor | None:
        return self.book.draw_kept(batch, generator)

    def count_codes(self, num_positions: int) -> int:
        return self.book.count_codes(num_positions)

    def quantize_batch(self, z: Tensor, mask: Tensor | None, options: QuantizeOptions) -> Quantized:
        found = self.book.quantize_batch(z, mask, options)
        ids = split_code(found.ids[..., 0], self.codebook_sizes)
        return Quantized(found.values, ids, found.loss, found.rows, found.numbers)

    def regularize(self, z: Tensor, mask: Tensor | None) -> Tensor:
        return self.book.regularize(z, mask)

    def learn_from(self, z: Tensor, ids: Tensor, generator: torch.Generator | None) -> None:
        self.book.learn_from(z, join_code(ids, self.codebook_sizes)[..., None], generator)

    def look_up_batch(self, ids: Tensor) -> Tensor:
        return self.book.look_up(join_code(ids, self.codebook_sizes)[..., None])


def split_code(ids: Tensor, sizes: Sequence[int]) -> Tensor:
    """ids: int64 [...] below the product of sizes → its digits, int64 [..., G], the first fastest."""
    digits = []
    for size in sizes:
        digits.append(ids % size)
        ids = ids // size
    return torch.stack(digits, dim=-1)


def join_code(digits: Tensor, sizes: Sequence[int]) -> Tensor:
    """digits: int64 [..., G] → int64 [...]; the inverse of ``split_code``."""
    ids = torch.zeros_like(digits[..., 0])
    for group in reversed(range(len(sizes))):
        ids = ids * sizes[group] + digits[..., group]
    return ids


def choose_factors(size: int, most: int = 65_536) -> tuple[int, ...]:
    """How a code of `size` values is split into as few groups as `most` values each allow, of sizes near each other:
    262,144 → (512, 512). ValueError where a prime factor alone is larger."""
    if size <= most:
        return (size,)
    for count in range(2, size.bit_length() + 1):
        side = round(size ** (1 / count))
        for first in range(min(side, most), 1, -1):
            if size % first == 0:
                try:
                    rest = choose_factors(size // first, most)
                except ValueError:
                    continue
                if len(rest) == count - 1:
                    return (first, *rest)
    raise ValueError(f"{size} has a prime factor above {most}; such a code cannot be split")

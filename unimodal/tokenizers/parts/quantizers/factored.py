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
from unimodal.tokenizers.parts.split_ids import join_ids, split_ids


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
        ids = split_ids(found.ids[..., 0], self.codebook_sizes)
        return Quantized(found.values, ids, found.loss, found.rows, found.numbers)

    def regularize(self, z: Tensor, mask: Tensor | None) -> Tensor:
        return self.book.regularize(z, mask)

    def learn_from(self, z: Tensor, ids: Tensor, generator: torch.Generator | None) -> None:
        self.book.learn_from(z, join_ids(ids, self.codebook_sizes)[..., None], generator)

    def look_up_batch(self, ids: Tensor) -> Tensor:
        return self.book.look_up(join_ids(ids, self.codebook_sizes)[..., None])


def choose_factors(size: int, most: int = 65_536) -> tuple[int, ...]:
    """How a code of `size` values is split in few groups of at most `most` values, of sizes near each other: 262,144 →
    (512, 512). ValueError where a prime factor alone is larger."""
    primes, left = [], size
    prime = 2
    while prime * prime <= left:
        while left % prime == 0:
            primes.append(prime)
            left //= prime
        prime += 1
    primes = sorted([*primes, left] if left > 1 else primes, reverse=True)
    if primes and primes[0] > most:
        raise ValueError(f"{size} has the prime factor {primes[0]}, above {most}; such a code cannot be split")
    for count in range(1, len(primes) + 1):
        groups = [1] * count
        for prime in primes:  # the largest first, each into the smallest group
            groups[groups.index(min(groups))] *= prime
        if max(groups) <= most:
            return tuple(sorted(groups))
    return (size,)

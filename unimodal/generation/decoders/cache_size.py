"""What streams take of memory for keys and values, before they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unimodal.generation.decoders.paged_cache import BLOCK


@dataclass(frozen=True)
class LayersSize:
    """The bytes that some layers keep of a token, and the window that they see; None is all."""

    token_bytes: int
    window: int | None


def count_bytes(sizes: Sequence[LayersSize], num_tokens: int) -> int:
    """The most bytes that a stream of so many tokens takes, in whole blocks."""
    total = 0
    for size in sizes:
        blocks = -(-num_tokens // BLOCK)
        if size.window is not None:
            blocks = min(blocks, (size.window - 1) // BLOCK + 2)
        total += blocks * BLOCK * size.token_bytes
    return total

"""Guesses for a window's next tokens, from sequences that were written before, as REST (arXiv:2311.08252) has them.

The token that last followed the same few tokens is the guess for the next one, and so on from guess to guess: a chain,
for decoders that judge a window. `suffix_memory.py` has the paper's own lookup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from unimodal.generation.fast.protocol import LATEST


@dataclass
class DraftMemory:
    """Remembers the token that followed each run of ``context`` tokens.

    most: runs that are remembered; the oldest are dropped first. shared: a memory that is read where this one knows
    nothing, and that is never written to.
    """

    context: int = 3
    most: int = 1_000_000
    successors: dict[tuple[int, ...], int] = field(default_factory=dict, repr=False)
    shared: DraftMemory | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.context <= LATEST:
            raise ValueError(f"context is {self.context}; it is a number of tokens between 1 and {LATEST}")

    def branch(self) -> DraftMemory:
        """A memory that reads this one and keeps to itself what it learns."""
        return DraftMemory(self.context, self.most, shared=self)

    def find(self, key: tuple[int, ...]) -> int | None:
        """The token that followed these tokens the last time; None if unknown."""
        found = self.successors.get(key)
        return found if found is not None or self.shared is None else self.shared.find(key)

    def learn(self, ids: Sequence[int]) -> None:
        """Remember the successors in a sequence of vocabulary rows."""
        for end in range(self.context, len(ids)):
            key = tuple(ids[end - self.context : end])
            self.successors.pop(key, None)  # so that it becomes the newest
            self.successors[key] = ids[end]
        while len(self.successors) > self.most:
            del self.successors[next(iter(self.successors))]

    def recall(self, latest: Sequence[int], allowed: range, num: int) -> list[int]:
        """Up to ``num`` guesses for the tokens behind ``latest``, up to the first that is unknown or not allowed."""
        key, guesses = tuple(latest[-self.context :]), list[int]()
        while len(guesses) < num:
            guess = self.find(key)
            if guess is None or guess not in allowed:
                break
            guesses.append(guess)
            key = (*key[1:], guess)
        return guesses

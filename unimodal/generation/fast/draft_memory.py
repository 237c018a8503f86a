"""What followed what before: guesses for the next tokens from those that were written (REST, arXiv:2311.08252).

The token that once followed the last few tokens is the guess for what follows them now, and so on from guess to guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from unimodal.generation.fast.speculation import LATEST


@dataclass
class DraftMemory:
    """context: tokens that say what follows. most: contexts that are remembered; the oldest go first. shared: a memory
    that is asked where this one knows nothing, and learns nothing through it."""

    context: int = 3
    most: int = 1_000_000
    successors: dict[tuple[int, ...], int] = field(default_factory=dict, repr=False)
    shared: DraftMemory | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not 1 <= self.context <= LATEST:
            raise ValueError(f"context is {self.context}; it is a number of tokens between 1 and {LATEST}")

    def branch(self) -> DraftMemory:
        """A memory that knows what this one does and keeps what it learns to itself."""
        return DraftMemory(self.context, self.most, shared=self)

    def find(self, key: tuple[int, ...]) -> int | None:
        """What followed these tokens the last time, as far as it is known."""
        found = self.successors.get(key)
        return found if found is not None or self.shared is None else self.shared.find(key)

    def learn(self, ids: Sequence[int]) -> None:
        """Remember what follows what in a sequence of vocabulary rows."""
        for end in range(self.context, len(ids)):
            key = tuple(ids[end - self.context : end])
            self.successors.pop(key, None)  # what is seen again is the newest
            self.successors[key] = ids[end]
        while len(self.successors) > self.most:
            del self.successors[next(iter(self.successors))]

    def recall(self, latest: Sequence[int], allowed: range, num: int) -> list[int]:
        """Up to num guesses for what comes behind these tokens, as far as they are known and allowed."""
        key, guesses = tuple(latest[-self.context :]), list[int]()
        while len(guesses) < num:
            guess = self.find(key)
            if guess is None or guess not in allowed:
                break
            guesses.append(guess)
            key = (*key[1:], guess)
        return guesses

"""A test bench for tokenizers with known answers: text of a Markov source, and what a model of single tokens pays.

"Toward a Theory of Tokenization in LLMs" (arXiv:2404.08335): on a source whose next letter depends on the one k places
before, a model that knows only how often letters occur pays the entropy of the letters, however long it learns, which
is what transformers without tokens fall into for k > 1. A model that knows only how often tokens occur comes near the
source's own entropy as the tokens grow longer: the tokens do the learning.

The source is the paper's switching process: two letters, the next of which differs from the one k places before with
probability p behind the first letter and q behind the second. All entropies are in bits a letter.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

LETTERS = "ab"


@dataclass(frozen=True)
class MarkovSource:
    """A switching process of order k. Raises ValueError for probabilities outside (0, 1) and orders below 1."""

    order: int
    p: float  # of b behind a, k places on
    q: float  # of a behind b

    def __post_init__(self) -> None:
        if self.order < 1 or not (0 < self.p < 1 and 0 < self.q < 1):
            raise ValueError(
                f"a source of order {self.order} with p={self.p:g}, q={self.q:g}: give an order of 1 or more, and "
                "probabilities between 0 and 1"
            )

    @property
    def share(self) -> float:
        """The share of the letter b in a long text."""
        return self.p / (self.p + self.q)

    @property
    def entropy_rate(self) -> float:
        """What the best model pays."""
        return (1 - self.share) * compute_binary_entropy(self.p) + self.share * compute_binary_entropy(self.q)

    @property
    def letter_entropy(self) -> float:
        """What the best model pays that knows only how often letters occur."""
        return compute_binary_entropy(self.share)

    def draw(self, num_lines: int, length: int, seed: int = 0) -> list[str]:
        """Lines of so many letters, each begun as the source goes on for ever."""
        rng = np.random.default_rng(seed)
        bits = np.empty((num_lines, length), np.int8)
        bits[:, : self.order] = rng.random((num_lines, min(self.order, length))) < self.share
        for at in range(self.order, length):
            before = bits[:, at - self.order]
            switched = rng.random(num_lines) < np.where(before == 1, self.q, self.p)
            bits[:, at] = before ^ switched
        return ["".join(LETTERS[bit] for bit in line) for line in bits]


def compute_binary_entropy(share: float) -> float:
    """The entropy of a coin, in bits."""
    return -sum(part * math.log2(part) for part in (share, 1 - share) if part > 0)


def score_unigram(
    encode: Callable[[str], Sequence[int]], learned: Sequence[str], measured: Sequence[str], num_rows: int
) -> float:
    """What a model of single tokens pays a letter: frequencies of one text, with 1 added for each row, on another.

    Raises ValueError for an empty text.
    """
    letters = sum(map(len, measured))
    if not letters or not any(learned):
        raise ValueError("there is no text to learn from or to measure")
    counts = Counter(row for line in learned for row in encode(line))
    total = counts.total() + num_rows
    return sum(math.log2(total / (counts[row] + 1)) for line in measured for row in encode(line)) / letters

"""Which words translate each other, learned from lines that do: IBM Model 1 (Brown et al. 1993), as `fast_align`
(Dyer et al. 2013) computes it without its options.

Every word of the second language has one origin in the line of the first, or none; which one is learned by
expectation maximisation from uniform guesses. Pairs are given with how often they are expected in the last round, and
pairs of less than the fourth power of a word's best probability are left out, as by `fast_align -p`.

Legend: P pairs of words that stand in parallel lines, K choices (a word of the second language × its origins).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
ROUNDS = 7  # of `fast_align` as trans-tokenization calls it; the last one of them only aligns
NO_WORD = -1  # the origin of words that nothing in the other line says
BEAM = 4.0


@dataclass(frozen=True)
class Translation:
    """A word of the first language, one of the second, how probable this is, and how often it is expected."""

    source: int
    target: int
    probability: float
    count: float


def align_words(lines: Sequence[tuple[Sequence[int], Sequence[int]]], rounds: int = ROUNDS) -> list[Translation]:
    """Learn translations from parallel lines of word numbers, 0 or more; empty lines are left out.

    rounds: as `fast_align -I`, one more than the probabilities are counted anew. Raises ValueError for fewer than two.
    """
    if rounds < 2:
        raise ValueError(f"rounds is {rounds}; give two or more, the last of which only aligns")
    kept = [pair for pair in lines if pair[0] and pair[1]]
    if not kept:
        return []
    width = 1 + max(max(target) for _, target in kept)
    keys, lengths = _list_choices(kept, width)
    pairs, index = np.unique(keys, return_inverse=True)  # [P], [K]
    sources = pairs // width  # 0 stands for no word
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    # the share of each choice among those of its word; the lengths of the lines cancel
    scores: Floats = np.ones(len(pairs))
    counts = scores
    for _ in range(rounds - 1):
        given = scores[index]
        shares = given / np.repeat(np.add.reduceat(given, starts), lengths)
        counts = np.bincount(index, shares, len(pairs)).astype(np.float64)
        scores = counts / np.bincount(sources, counts)[sources]
    best = np.zeros(int(sources.max()) + 1)
    np.maximum.at(best, sources, scores)
    likely = np.flatnonzero((scores > 0) & (scores >= best[sources] ** BEAM) & (sources > 0))
    return [
        Translation(int(sources[at]) - 1, int(pairs[at] % width), float(scores[at]), float(counts[at])) for at in likely
    ]


def _list_choices(
    lines: Sequence[tuple[Sequence[int], Sequence[int]]], width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pair of every choice, [K], as (source + 1) * width + target, and the number of choices of every word."""
    keys: list[NDArray[np.int64]] = []
    lengths: list[int] = []
    for source, target in lines:
        origins = np.concatenate([[NO_WORD], np.asarray(source, np.int64)]) + 1  # [len(source) + 1]
        keys.append((np.asarray(target, np.int64)[:, None] + origins * width).reshape(-1))
        lengths += [len(origins)] * len(target)
    return np.concatenate(keys), np.asarray(lengths, np.int64)

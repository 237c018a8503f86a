"""What a BPE tokenizer was trained on, from the order of its merges (Hayase et al. 2024, "Data Mixture Inference: What
do BPE Tokenizers Reveal about their Training Data?", arXiv:2407.16607).

Each merge was the most frequent pair of its time. Given samples of the categories that may have been in the training
text, the pairs of each sample are counted anew after every merge, per byte. A linear program finds the shares under
which every merge is ahead of every other pair, with a slack for each merge and one for each pair, whose sum is least.
As in the authors' program the constraints are added where they are violated, up to ten a merge at a time, until none
is; here all merges are looked at in each round, and the solver is SciPy's HiGHS instead of Gurobi.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from unimodal.text.reports.opened import OpenedTokenizer

Pair = tuple[str, str]
Floats = NDArray[np.float64]

MOST_MERGES = 1000  # as the authors do unless told
_BATCH = 10  # competitors of a merge that are added in a round
_MOST_ROUNDS = 100
_PER_BYTES = 1e6  # counts are per so many bytes: the solver's tolerance is absolute
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class InferredMixture:
    """shares: category → share of the bytes of the training text. missing: merges that no sample has the pair of."""

    shares: dict[str, float]
    merges: int
    missing: int
    slack: float


@dataclass(frozen=True)
class PairHistory:
    """Counts of all pairs for K categories, merge by merge.

    first: [P, K] before any merge. changes: for each merge after which counts change, the pairs and what is added,
    [n, K]. merged: the index of the pair of each merge, or -1 where no sample has it.
    """

    first: Floats
    changes: list[tuple[NDArray[np.int64], Floats]]
    merged: list[int]


def infer_mixture(
    tokenizer: OpenedTokenizer, samples: Mapping[str, Sequence[str]], most_merges: int = MOST_MERGES
) -> InferredMixture:
    """The shares of categories in a tokenizer's training text. samples: category → lines of it.

    Raises ValueError for fewer than two samples and for a tokenizer without merges.
    """
    if len(samples) < 2:
        raise ValueError("a mixture is of two samples or more; name each as NAME=FILE")
    merges = read_merges(tokenizer)[:most_merges]
    words = [count_words(tokenizer, lines) for lines in samples.values()]
    sizes = np.array([sum(len(line.encode()) + 1 for line in lines) for lines in samples.values()], np.float64)
    history = follow_merges(merges, words)
    if all(row < 0 for row in history.merged):
        raise ValueError("none of the tokenizer's merges occurs in the samples; give text that it was trained on")
    shares, slack = solve(history, sizes / _PER_BYTES)
    found = dict(zip(samples, (float(share) for share in shares), strict=True))
    return InferredMixture(found, len(merges), sum(row < 0 for row in history.merged), slack)


def read_merges(tokenizer: OpenedTokenizer) -> list[Pair]:
    """The merges in the order they were learned in. Raises ValueError for a tokenizer that has none.

    Some files list every pair that makes a piece, as those converted from SentencePiece: of these only the pair is kept
    that the merges before it lead to.
    """
    model = tokenizer.data["model"]
    merges = [(left, right) for left, right in model.get("merges") or []]
    if not merges:
        raise ValueError(f"{tokenizer.name} has no merges (its model is {model['type']}): a mixture is inferred of BPE")
    if len({left + right for left, right in merges}) == len(merges):
        return merges
    rank: dict[Pair, int] = {}
    kept = []
    for left, right in merges:
        if _apply(list(left + right), rank) == [left, right]:
            kept.append((left, right))
        rank[left, right] = len(rank)
    return kept


def _apply(parts: list[str], rank: Mapping[Pair, int]) -> list[str]:
    """Merges parts by rank until nothing is left to merge."""
    while True:
        known = [(rank[pair], place) for place, pair in enumerate(zip(parts, parts[1:], strict=False)) if pair in rank]
        if not known:
            return parts
        place = min(known)[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


def count_words(tokenizer: OpenedTokenizer, lines: Iterable[str]) -> Counter[str]:
    """How often each word occurs that the tokenizer cuts these lines into, written as it writes them."""
    made = Tokenizer.from_str(json.dumps(tokenizer.data))
    normalizer, splitter = made.normalizer, made.pre_tokenizer
    counts: Counter[str] = Counter()
    for line in lines:
        text = f"{line}\n"
        text = text if normalizer is None else normalizer.normalize_str(text)
        if splitter is not None:
            counts.update(word for word, _ in splitter.pre_tokenize_str(text))
        else:  # a whole line is one word, but no merge of SentencePiece's crosses the mark of a space
            counts.update(f"\u2581{word}" for word in text.removeprefix("\u2581").split("\u2581"))
    return counts


def follow_merges(merges: Sequence[Pair], words: Sequence[Mapping[str, int]]) -> PairHistory:
    """Counts the pairs of K samples of words before the first merge, and what each merge changes."""
    spelled = list(dict.fromkeys(word for counts in words for word in counts))
    weights = np.array([[counts.get(word, 0) for counts in words] for word in spelled], np.float64)  # [words, K]
    parts = [list(word) for word in spelled]
    numbers: dict[Pair, int] = {}
    places: dict[Pair, set[int]] = {}  # pair → words that may hold it
    first: list[Floats] = []

    def number_pair(pair: Pair) -> int:
        if pair not in numbers:
            numbers[pair] = len(numbers)
            first.append(np.zeros(len(words)))
        return numbers[pair]

    for word, letters in enumerate(parts):
        for pair in zip(letters, letters[1:], strict=False):
            first[number_pair(pair)] += weights[word]
            places.setdefault(pair, set()).add(word)
    changes: list[tuple[NDArray[np.int64], Floats]] = []
    merged: list[int] = []
    for left, right in merges:
        merged.append(numbers.get((left, right), -1))
        change: dict[int, Floats] = {}
        for word in sorted(places.pop((left, right), ())):
            before = Counter(zip(parts[word], parts[word][1:], strict=False))
            parts[word] = _merge(parts[word], left, right)
            after = Counter(zip(parts[word], parts[word][1:], strict=False))
            for pair in before.keys() | after.keys():
                if difference := after[pair] - before[pair]:
                    row = number_pair(pair)
                    change.setdefault(row, np.zeros(len(words)))
                    change[row] += difference * weights[word]
                    if difference > 0:
                        places.setdefault(pair, set()).add(word)
        rows = np.array(list(change), np.int64)
        changes.append((rows, np.array(list(change.values())).reshape(len(rows), len(words))))
    return PairHistory(np.array(first).reshape(len(numbers), len(words)), changes, merged)


def _merge(parts: Sequence[str], left: str, right: str) -> list[str]:
    found: list[str] = []
    place = 0
    while place < len(parts):
        joins = place + 1 < len(parts) and parts[place] == left and parts[place + 1] == right
        found.append(left + right if joins else parts[place])
        place += 1 + joins
    return found


def solve(history: PairHistory, sizes: Floats) -> tuple[Floats, float]:
    """Shares [K] of categories and the sum of slacks. sizes: [K], what the counts of a category are divided by."""
    num_categories = len(sizes)
    shares = np.full(num_categories, 1 / num_categories)
    merge_slack = np.zeros(len(history.merged))
    pair_slack = np.zeros(len(history.first))
    rows: list[Floats] = []  # merge's counts minus the competitor's, [K]
    slots: list[tuple[int, int]] = []  # (merge, competing pair) of each constraint
    known: set[tuple[int, int]] = set()
    total = 0.0
    for _ in range(_MOST_ROUNDS):
        found = _find_violations(history, sizes, shares, merge_slack, pair_slack, known)
        if not found:
            return shares, total
        for slot, row in found:
            known.add(slot)
            slots.append(slot)
            rows.append(row)
        shares, total = _optimize(np.array(rows), slots, merge_slack, pair_slack)
    raise ValueError(f"the linear program has not ended after {_MOST_ROUNDS} rounds; give fewer merges")


def _find_violations(
    history: PairHistory,
    sizes: Floats,
    shares: Floats,
    merge_slack: Floats,
    pair_slack: Floats,
    known: set[tuple[int, int]],
) -> list[tuple[tuple[int, int], Floats]]:
    """Pairs that were ahead of a merge under these shares, the furthest ahead of each merge: ((merge, pair), row)."""
    counts = history.first / sizes  # [P, K]
    found: list[tuple[tuple[int, int], Floats]] = []
    for step, merged in enumerate(history.merged):
        if merged >= 0:
            ahead = counts @ shares - pair_slack - (counts[merged] @ shares + merge_slack[step])
            ahead[merged] = -np.inf
            over = np.flatnonzero(ahead > _TOLERANCE)
            for pair in over[np.argsort(-ahead[over], kind="stable")][:_BATCH].tolist():
                if (step, pair) not in known:
                    found.append(((step, pair), counts[merged] - counts[pair]))
        changed, added = history.changes[step]
        counts[changed] += added / sizes
    return found


def _optimize(
    rows: Floats, slots: Sequence[tuple[int, int]], merge_slack: Floats, pair_slack: Floats
) -> tuple[Floats, float]:
    """Solves the program of these constraints; writes the slacks in place. rows: [C, K]."""
    try:
        from scipy.optimize import linprog
        from scipy.sparse import coo_matrix, hstack
    except ImportError:
        raise ValueError("the linear program is solved by SciPy; install it with `pip install scipy`") from None
    num_constraints, num_categories = rows.shape
    steps, step_of = np.unique([step for step, _ in slots], return_inverse=True)
    pairs, pair_of = np.unique([pair for _, pair in slots], return_inverse=True)
    line, ones = np.arange(num_constraints), np.ones(num_constraints)
    matrix = hstack(
        [
            coo_matrix(rows),
            coo_matrix((ones, (line, step_of)), shape=(num_constraints, len(steps))),
            coo_matrix((ones, (line, pair_of)), shape=(num_constraints, len(pairs))),
        ]
    )
    num_slacks = len(steps) + len(pairs)
    result = linprog(
        c=np.concatenate([np.zeros(num_categories), np.ones(num_slacks)]),
        A_ub=-matrix.tocsr(),
        b_ub=np.zeros(num_constraints),
        A_eq=np.concatenate([np.ones(num_categories), np.zeros(num_slacks)])[None],
        b_eq=[1.0],
        bounds=[(0, 1)] * num_categories + [(0, None)] * num_slacks,
        method="highs",
    )
    if result.x is None:
        raise ValueError(f"the linear program has no solution ({result.message}); give fewer merges or more text")
    merge_slack[:], pair_slack[:] = 0, 0
    merge_slack[steps] = result.x[num_categories : num_categories + len(steps)]
    pair_slack[pairs] = result.x[num_categories + len(steps) :]
    return np.asarray(result.x[:num_categories]), float(result.fun)

"""Shares of right answers with their 95% intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from math import sqrt

from unimodal.evaluation.asking import compute_percent

Z = 1.96  # of the normal distribution, for 95%


def measure_share(right: Sequence[bool], groups: Sequence[Hashable] | None = None) -> dict[str, float]:
    """How many of how many were right, in per cent, with Wilson's 95% interval (Wilson 1927).

    groups: what each answer belongs to, where answers are alike in groups, as the drawings of one wish or the takes of
    one recording are. The interval is then of as many answers as would tell as much (`count_independent`).
    """
    found = {} if groups is None else {"groups": len(set(groups))}
    if not right:
        return {"count": 0, "percent": 0.0, "low": 0.0, "high": 100.0, **found}
    count = len(right) if groups is None else count_independent(right, groups)
    low, high = find_interval(sum(right) / len(right), count)
    return {
        "count": len(right), "percent": compute_percent(right), "low": round(100 * low, 1),
        "high": round(100 * high, 1), **found,
    }  # fmt: skip


def find_interval(share: float, count: float) -> tuple[float, float]:
    """Wilson's 95% interval of a share of so many independent answers."""
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    reach = Z * sqrt(share * (1 - share) / count + Z**2 / (4 * count**2)) / (1 + Z**2 / count)
    return max(middle - reach, 0.0), min(middle + reach, 1.0)


def count_independent(right: Sequence[bool], groups: Sequence[Hashable]) -> float:
    """The effective number of answers in groups: independent answers would be as uncertain (Korn and Graubard 1998).

    It is the share's variance of one answer over its variance between groups, at least 1 and at most the number of
    answers; the number of groups where all answers are right or all wrong, which shows no variance.
    """
    share = sum(right) / len(right)
    apart: defaultdict[Hashable, float] = defaultdict(float)
    for answer, group in zip(right, groups, strict=True):
        apart[group] += answer - share
    if not 0 < share < 1 or len(apart) < 2:
        return len(apart)
    spread = len(apart) / (len(apart) - 1) * sum(value**2 for value in apart.values()) / len(right) ** 2
    return min(max(share * (1 - share) / max(spread, 1e-12), 1.0), len(right))

"""Shares of right answers with their 95% intervals."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from unimodal.evaluation.asking import compute_percent

Z = 1.96  # of the normal distribution, for 95%


def measure_share(right: Sequence[bool]) -> dict[str, float]:
    """How many of how many were right, in per cent, with Wilson's 95% interval (Wilson 1927)."""
    count = len(right)
    if not count:
        return {"count": 0, "percent": 0.0, "low": 0.0, "high": 100.0}
    share = sum(right) / count
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    reach = Z * sqrt(share * (1 - share) / count + Z**2 / (4 * count**2)) / (1 + Z**2 / count)
    low, high = round(100 * max(middle - reach, 0), 1), round(100 * min(middle + reach, 1), 1)
    return {"count": count, "percent": compute_percent(right), "low": low, "high": high}

"""How numbers are split, by their length; it matters for arithmetic (Singh and Strouse 2024, arXiv:2402.14903)."""

from __future__ import annotations

import random
from collections import Counter

from unimodal.text.reports.opened import OpenedTokenizer

LENGTHS = range(1, 10)
SAMPLES = 40  # numbers of each length


def split_number(tokenizer: OpenedTokenizer, number: str) -> tuple[int, ...]:
    """How many digits each token of a number has, in a text with a space before it."""
    encoded = tokenizer.locate(f" {number}")
    lengths = (end - max(start, 1) for start, end in encoded.spans)
    return tuple(length for length in lengths if length > 0)


def name_rule(groups: tuple[int, ...]) -> str:
    """`whole`, `single`, `left` or `right` (groups of three from there), or else `other`; several where they agree."""
    length = sum(groups)
    full, rest = divmod(length, 3)
    rules = {
        "whole": (length,),
        "single": (1,) * length,
        "left": (3,) * full + ((rest,) if rest else ()),
        "right": ((rest,) if rest else ()) + (3,) * full,
    }
    return "/".join(name for name, wanted in rules.items() if wanted == groups) or "other"


def measure_numbers(tokenizer: OpenedTokenizer) -> dict[str, dict[str, object]]:
    """Length → the most frequent split, its rule, its share, and how many splits there are, over drawn numbers."""
    rng = random.Random(0)
    found: dict[str, dict[str, object]] = {}
    for length in LENGTHS:
        drawn = {str(rng.randrange(10 ** (length - 1), 10**length)) for _ in range(SAMPLES)}
        splits = Counter(split_number(tokenizer, number) for number in sorted(drawn))
        [(groups, count)] = splits.most_common(1)
        found[str(length)] = {
            "split": "-".join(map(str, groups)),
            "rule": name_rule(groups),
            "share": count / splits.total(),
            "splits": len(splits),
        }
    return found

"""What one language costs more than another: tokens of parallel text over the tokens of the same text in the first one.

The premium of Petrov et al. 2023 (arXiv:2305.15425), as "Explaining and Mitigating Crosslingual Tokenizer Inequities"
uses it. Lines that are blank in one of the files are left out of all.
"""

from __future__ import annotations

from collections.abc import Sequence

from unimodal.text.reports.opened import OpenedTokenizer


def compute_premiums(
    tokenizer: OpenedTokenizer, names: Sequence[str], texts: Sequence[Sequence[str]]
) -> dict[str, dict[str, float]]:
    """Name → tokens, bytes, and both over those of the first text. texts: one a name, line by line the same sense.

    "worst line" is the highest premium of a single line.
    """
    kept = [lines for lines in zip(*texts, strict=True) if all(line.strip() for line in lines)]
    if not kept:
        raise ValueError("no line of the parallel files is filled in all of them")
    counts = [[len(tokenizer.encode(line)) for line in lines] for lines in kept]
    sizes = [[len(line.encode()) for line in lines] for lines in kept]
    first_tokens, first_bytes = (sum(row[0] for row in table) for table in (counts, sizes))
    found = {}
    for column, name in enumerate(names):
        tokens, num_bytes = (sum(row[column] for row in table) for table in (counts, sizes))
        found[name] = {
            "tokens": tokens,
            "premium": tokens / first_tokens,
            "worst line": max(row[column] / max(row[0], 1) for row in counts),
            "bytes": num_bytes,
            "premium of bytes": num_bytes / first_bytes,
        }
    return found

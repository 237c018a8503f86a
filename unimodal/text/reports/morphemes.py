"""How the cuts of a tokenizer agree with a segmentation of words into morphemes.

Cuts inside a word are compared with the given ones: precision, recall and F1 over all cuts (micro) and as a mean over
words (macro), cuts too many and cuts that are missing a word, and how often the first segment, the stem, is one token
("Optimal Turkish Subword Strategies at Scale"). Purity is the share of the different tokens that are morphemes of the
file, and words the share that are words of it ("Tokenization Standards for Linguistic Integrity": %Pure and %TR, there
by dictionaries).

Every word is encoded with a space before it, as in a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unimodal.files import quote_path
from unimodal.text.corpora import read_text
from unimodal.text.reports.opened import OpenedTokenizer


def read_segments(path: str | Path) -> list[tuple[str, list[str]]]:
    """(word, its segments) of a file with one word a line: `word<TAB>its segments with spaces between`.

    Raises ValueError, naming the line, for one of another form or whose segments do not make the word.
    """
    found = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        word, tab, rest = line.rstrip("\r").partition("\t")
        segments = rest.split()
        if not tab or "".join(segments) != word:
            raise ValueError(
                f"{quote_path(path)}, line {number}: {line[:60]!r} is not a word, a tab and its segments with spaces "
                "between"
            )
        found.append((word, segments))
    if not found:
        raise ValueError(f"{quote_path(path)} holds no word")
    return found


def find_cuts(tokenizer: OpenedTokenizer, word: str) -> tuple[set[int], list[str]]:
    """The places inside a word, from 1, where a token ends; and the tokens, as parts of the word."""
    encoded = tokenizer.locate(f" {word}")
    parts = [(max(start - 1, 0), end - 1) for start, end in encoded.spans]
    cuts = {end for _, end in parts if 0 < end < len(word)}
    return cuts, [word[start:end] for start, end in parts if end > start]


def measure_morphemes(
    tokenizer: OpenedTokenizer, segmented: Sequence[tuple[str, Sequence[str]]]
) -> dict[str, float | int]:
    """Agreement with the segments of words. Empty cuts on both sides of a word agree fully."""
    hits = extra = missing = stems = 0
    scores: list[float] = []
    tokens: set[str] = set()
    for word, segments in segmented:
        cuts, parts = find_cuts(tokenizer, word)
        wanted = {sum(map(len, segments[:count])) for count in range(1, len(segments))}
        common = len(cuts & wanted)
        hits, extra, missing = hits + common, extra + len(cuts - wanted), missing + len(wanted - cuts)
        scores.append(_compute_f1(common, len(cuts - wanted), len(wanted - cuts)))
        stems += bool(parts) and parts[0] == segments[0]
        tokens.update(parts)
    morphemes = {segment for _, segments in segmented for segment in segments}
    words = {word for word, _ in segmented}
    return {
        "words": len(segmented),
        "precision": hits / (hits + extra) if hits + extra else 1.0,
        "recall": hits / (hits + missing) if hits + missing else 1.0,
        "F1": _compute_f1(hits, extra, missing),
        "F1, mean of words": sum(scores) / len(scores),
        "cuts too many a word": extra / len(segmented),
        "cuts missing a word": missing / len(segmented),
        "stems of one token": stems / len(segmented),
        "purity": len(tokens & morphemes) / len(tokens),
        "tokens that are words": len(tokens & words) / len(tokens),
    }


def _compute_f1(hits: int, extra: int, missing: int) -> float:
    return 2 * hits / (2 * hits + extra + missing) if hits or extra or missing else 1.0

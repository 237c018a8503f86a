"""Trans-tokenization (Remy et al. 2024, arXiv:2408.04303): a new token is the mean of the tokens that translate it.

Words of parallel lines are aligned (`text/word_alignment.py`). A pair of words that are several tokens gives its
count to the pairs of their tokens, half of it to all of them and half to those at the same place. Identical tokens and
numbers count once more. A token that no line translates is given the translations of those that begin with it and of
the longest that it holds. The rows are means of the base's, weighted by the counts.

All as in the authors' program. It asks a token's piece for the sign of a word's start, which some tokenizers lack; here
a token starts a word where it spells a space first. A token without any translation begins as the base's row for
unknown text, or for padding, or for the start; where the base has none of them at the mean, not as the base's row 0.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Container, Sequence

from unimodal.text.reports.opened import OpenedTokenizer
from unimodal.text.word_alignment import align_words
from unimodal.tuning.transplant.pieces import spell_text
from unimodal.tuning.transplant.request import SparseMixture, TransplantRequest

FEWEST = 10  # pairs of words that are expected less often are taken for noise
NUMBERS, SHORT_NUMBERS = 9999, 99
WORD_START, INSIDE = 2000, 1000  # the weights of a borrowed translation that starts a word, and of others

Counts = dict[bytes, dict[int, int]]
Word = tuple[int, ...]


def mix_translations(request: TransplantRequest) -> SparseMixture:
    """Raises ValueError without parallel lines."""
    if request.parallel is None:
        raise ValueError("method 'trans-tokenization' needs text that says the same in both languages: --parallel A B")
    counts = count_translations(request)
    starts = {row for row, piece in request.old.spelled.items() if piece.startswith(b" ")}
    lend_translations(counts, [request.new.spelled[row] for row in sorted(request.new.spelled)], starts)
    mixed: dict[int, dict[int, float]] = {}
    for row, piece in request.new.spelled.items():
        found = counts.get(piece, {})
        total = sum(found.values())
        if total > 0:
            mixed[row] = {column: count / total for column, count in found.items()}
        elif request.unknown:
            mixed[row] = {request.unknown[0]: 1.0}
    return SparseMixture.from_rows(request.num_rows, mixed)


def count_translations(request: TransplantRequest, fewest: int = FEWEST) -> Counts:
    """What each new token spells → row of the base → how often they translate each other."""
    assert request.parallel is not None
    counts: Counts = defaultdict(lambda: defaultdict(int))
    words: tuple[dict[Word, int], dict[Word, int]] = ({}, {})
    lines = []
    for pair in zip(*request.parallel, strict=True):
        cut = [group_words(tokenizer, line) for tokenizer, line in zip((request.old, request.new), pair, strict=True)]
        numbered = [[seen.setdefault(word, len(seen)) for word in line] for seen, line in zip(words, cut, strict=True)]
        lines.append((numbered[0], numbered[1]))
    listed = [list(known) for known in words]
    spelled = request.new.spelled
    for found in align_words(lines):
        old, new, count = listed[0][found.source], listed[1][found.target], int(found.count)
        if count < fewest:
            continue
        if len(old) == len(new) == 1:
            counts[spelled.get(new[0], b"")][old[0]] += count
            continue
        half = max(1, count // 2)
        for ours, theirs in ((row, column) for row in new for column in old):
            counts[spelled.get(ours, b"")][theirs] += max(1, half // len(old))
        common = math.gcd(len(old), len(new))
        share = 1 if len(old) == len(new) else len(old) // common
        for place in range(len(old) * len(new) // common):
            ours, theirs = new[place * common // len(old)], old[place * common // len(new)]
            counts[spelled.get(ours, b"")][theirs] += max(1, half // share)
    counts.pop(b"", None)  # tokens that spell nothing
    _add_numbers(request, counts)
    for row, column in request.shared.items():
        counts[spelled[row]][column] += 1
    return counts


def group_words(tokenizer: OpenedTokenizer, line: str) -> list[Word]:
    """The tokens of a line, those of one word together: a letter behind a letter goes on with the word."""
    words: list[Word] = []
    before = ""
    for row in tokenizer.encode(line.strip()):
        text = spell_text(tokenizer.spelled.get(row, b""))
        goes_on = bool(words) and text[:1].isalpha() and before[-1:].isalpha()
        if goes_on:
            words[-1] = (*words[-1], row)
        else:
            words.append((row,))
        before = text
    return words


def _add_numbers(request: TransplantRequest, counts: Counts) -> None:
    """Count a number as its own translation, or as that of its first part."""
    pieces = {piece: row for row, piece in request.new.spelled.items()}
    digits = [*(str(n) for n in range(NUMBERS)), *(f"0{n}" for n in range(SHORT_NUMBERS))]
    by_bytes = {piece: row for row, piece in sorted(request.old.spelled.items(), reverse=True)}
    for number in digits:
        piece = number.encode()
        for spelled, times in ((piece, 1), (piece, 1), (b" " + piece, 1)):
            if spelled in pieces:
                column = by_bytes.get(spelled)
                parts = [column] if column is not None else request.decompose(spelled)
                if parts:
                    counts[spelled][parts[0]] += times


def lend_translations(counts: Counts, pieces: Sequence[bytes], starts: Container[int]) -> None:
    """Give tokens without a translation those of tokens that begin with them, and of the longest that they hold.

    pieces: what the tokens spell, in the order in which they are looked at; one that was given some lends them on.
    starts: the base's rows that start a word, which weigh twice.
    """
    ordered = sorted({*pieces, *counts})
    for piece in pieces:
        if counts.get(piece):
            continue
        lenders = []
        for longer in ordered[bisect_left(ordered, piece) :]:
            if not longer.startswith(piece):
                break
            if counts.get(longer):
                lenders.append(longer)
        lenders += _find_longest(piece, counts)
        borrowed: dict[int, int] = defaultdict(int)
        for lender in lenders:
            total = sum(counts[lender].values())
            for column, count in counts[lender].items():
                weight = WORD_START if column in starts else INSIDE
                borrowed[column] += max(1, weight * count // total)
        if borrowed:
            counts[piece] = borrowed


def _find_longest(piece: bytes, counts: Counts) -> list[bytes]:
    """The translated tokens inside a token that lie in no other of them, by their first place."""
    inside = {piece[a:b] for a in range(len(piece)) for b in range(a + 1, len(piece) + 1)}
    known = sorted((part for part in inside if counts.get(part)), key=lambda part: (-len(part), piece.index(part)))
    kept = [part for at, part in enumerate(known) if not any(part in longer for longer in known[:at])]
    return sorted(kept, key=piece.index)

"""Rows that no text reaches, and rows that a model trained on such text would hardly have seen.

A row is unreached if none of a few texts that end with what it spells is encoded with it (Land and Bartolo 2024,
"Fishing for Magikarp", arXiv:2405.05417); rows that spell a part of a character are counted apart, for no text is what
they spell. A scaffold is a row that never occurs in the corpus although rows made from it do: it was needed on the way
to them. Scaffolds and other rows that never occur are the candidates for glitch tokens; whether a model has learnt them
only its weights tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from unimodal.text.reports.opened import OpenedTokenizer

CONTEXTS = ("", " ", "\n", "a", "1", ".")
SHOWN = 20


def find_unreached(tokenizer: OpenedTokenizer) -> tuple[list[int], list[int]]:
    """Rows that no text of their own reaches, and rows that spell parts of characters."""
    texts: dict[int, str] = {}
    parts = []
    for row, spelled in tokenizer.spelled.items():
        try:
            texts[row] = spelled.decode()
        except UnicodeDecodeError:
            parts.append(row)
    left = list(texts)
    for context in CONTEXTS:
        encoded = tokenizer.text.encode_batch([context + texts[row] for row in left])
        left = [row for row, ids in zip(left, encoded, strict=True) if row not in ids]
    return sorted(left), sorted(parts)


def find_scaffolds(tokenizer: OpenedTokenizer, counts: Mapping[int, int]) -> list[int]:
    """Rows that never occur though a merge makes of them, step by step, one that does. None without merges."""
    vocab = tokenizer.data["model"]["vocab"]
    merges = tokenizer.data["model"].get("merges") or []
    if not isinstance(vocab, dict):
        return []
    made_from: dict[int, list[int]] = {}
    for left, right in merges:
        made = vocab.get(left + right)
        if made is not None and left in vocab and right in vocab:
            made_from.setdefault(made, []).extend((vocab[left], vocab[right]))
    needed: set[int] = set()
    waiting = [row for row, count in counts.items() if count]
    while waiting:
        for part in made_from.get(waiting.pop(), []):
            if part not in needed:
                needed.add(part)
                waiting.append(part)
    return sorted(row for row in needed if not counts.get(row))


def measure_rows(tokenizer: OpenedTokenizer, counts: Mapping[int, int]) -> dict[str, object]:
    """counts: row → how often it occurs in the corpus."""
    unreached, parts = find_unreached(tokenizer)
    scaffolds = find_scaffolds(tokenizer, counts)
    unseen = [row for row in tokenizer.spelled if not counts.get(row)]
    return {
        "rows": tokenizer.num_rows,
        "parts of characters": len(parts),
        "unreached": len(unreached),
        "never in the corpus": len(unseen),
        "scaffolds": len(scaffolds),
        "unreached rows": _show(tokenizer, unreached),
        "scaffold rows": _show(tokenizer, scaffolds),
    }


def _show(tokenizer: OpenedTokenizer, rows: Sequence[int]) -> list[str]:
    return [f"{row} {tokenizer.spelled[row].decode(errors='replace')!r}" for row in rows[:SHOWN]]

"""Counts of tokens, words, characters and bytes, and what stands at the beginning of words and inside them.

A word is what stands between white space. Fertility is the number of tokens for a word: all tokens of a text over all
its words, so that tokens of white space alone count too (Rust et al. 2021, arXiv:2012.15613). Languages that write
without spaces have few such words; compare them by bytes a token or by their premium.

A token begins a word if it stands for the word's first character, and goes on with it if it stands for later ones
only; tokens that stand for no character of a word are spaces. Qtok ("A Comprehensive Framework for Evaluating
Multilingual Tokenizer Quality in Large Language Models") asks the same of the rows of a vocabulary. Scripts are the
first word of a character's Unicode name.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from unimodal.text.reports.opened import OpenedTokenizer

_WORD = re.compile(r"\S+")


@dataclass
class TextCounts:
    """num_split: words of two tokens or more. unknown_*: tokens of the unknown row, and characters they stand for.

    fallback_*: tokens that spell single bytes, and characters so spelled. starts, continuations: script → tokens.
    """

    num_lines: int = 0
    num_words: int = 0
    num_characters: int = 0
    num_bytes: int = 0
    num_tokens: int = 0
    num_split: int = 0
    num_spaces: int = 0
    unknown_tokens: int = 0
    unknown_characters: int = 0
    fallback_tokens: int = 0
    fallback_characters: int = 0
    starts: Counter[str] = field(default_factory=Counter)
    continuations: Counter[str] = field(default_factory=Counter)
    rows: Counter[int] = field(default_factory=Counter)

    @property
    def fertility(self) -> float:
        return self.num_tokens / self.num_words

    @property
    def coverage(self) -> float:
        """The share of characters that are not unknown."""
        return 1 - self.unknown_characters / self.num_characters

    def describe(self, num_rows: int) -> dict[str, object]:
        return {
            "lines": self.num_lines,
            "words": self.num_words,
            "characters": self.num_characters,
            "bytes": self.num_bytes,
            "tokens": self.num_tokens,
            "fertility": self.fertility,
            "bytes a token": self.num_bytes / self.num_tokens,
            "characters a token": self.num_characters / self.num_tokens,
            "words split": self.num_split / self.num_words,
            "coverage": self.coverage,
            "unknown tokens": self.unknown_tokens / self.num_tokens,
            "tokens of single bytes": self.fallback_tokens / self.num_tokens,
            "characters by bytes": self.fallback_characters / self.num_characters,
            "rows used": len(self.rows) / num_rows,
        }

    def list_scripts(self) -> dict[str, dict[str, int]]:
        """Script → tokens that begin words and that go on with them, the most frequent script first."""
        both = self.starts + self.continuations
        return {
            script: {"begin": self.starts[script], "go on": self.continuations[script]}
            for script, _ in sorted(both.items(), key=lambda pair: (-pair[1], pair[0]))
        }


def count_text(tokenizer: OpenedTokenizer, lines: Iterable[str]) -> TextCounts:
    """What the lines are as tokens. A line is encoded alone, without its end."""
    counts = TextCounts()
    for line in lines:
        encoded = tokenizer.locate(line)
        words = [found.span() for found in _WORD.finditer(line)]
        counts.num_lines += 1
        counts.num_words += len(words)
        counts.num_characters += len(line)
        counts.num_bytes += len(line.encode("utf-8", "surrogatepass"))
        counts.num_tokens += len(encoded.ids)
        counts.rows.update(encoded.ids)
        _count_special(counts, tokenizer, encoded.ids, encoded.spans)
        _count_places(counts, line, words, encoded.spans)
    return counts


def find_script(character: str) -> str:
    """`latin`, `cyrillic`, `cjk`, …, `digits` or `signs`."""
    kind = unicodedata.category(character)
    if kind[0] == "N":
        return "digits"
    if kind[0] not in "LM":
        return "signs"
    return unicodedata.name(character, "other").split()[0].split("-")[0].lower()


def find_text_script(text: str) -> str:
    """The script of the first letter of a text, else `digits`, `signs` or `spaces`."""
    kinds = [find_script(character) for character in text if not character.isspace()]
    if not kinds:
        return "spaces"
    return next((kind for kind in kinds if kind not in ("digits", "signs")), kinds[0])


def count_rows_by_script(tokenizer: OpenedTokenizer) -> dict[str, dict[str, int]]:
    """Script → rows of the vocabulary: those with a space before, those without, and parts of characters apart."""
    found: dict[str, Counter[str]] = {}
    for spelled in tokenizer.spelled.values():
        try:
            text = spelled.decode()
        except UnicodeDecodeError:
            found.setdefault("parts of characters", Counter())["without a space"] += 1
            continue
        with_space = len(text) > 1 and text[0] == " "
        found.setdefault(find_text_script(text), Counter())["with a space" if with_space else "without a space"] += 1
    ordered = sorted(found.items(), key=lambda pair: (-pair[1].total(), pair[0]))
    return {script: {"with a space": c["with a space"], "without": c["without a space"]} for script, c in ordered}


def _count_special(
    counts: TextCounts, tokenizer: OpenedTokenizer, ids: Sequence[int], spans: Sequence[tuple[int, int]]
) -> None:
    unknown: set[int] = set()
    spelled: set[int] = set()
    for row, (start, end) in zip(ids, spans, strict=True):
        if row == tokenizer.unknown_id:
            counts.unknown_tokens += 1
            unknown.update(range(start, end))
        elif row in tokenizer.byte_rows:
            counts.fallback_tokens += 1
            spelled.update(range(start, end))
    counts.unknown_characters += len(unknown)
    counts.fallback_characters += len(spelled)


def _count_places(
    counts: TextCounts, line: str, words: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> None:
    """Words and tokens are both in the order of the text, so each is looked at a few times only."""
    first = 0
    tokens_of_word = [0] * len(words)
    for start, end in spans:
        while first < len(words) and words[first][1] <= start:
            first += 1
        touched = []
        for number in range(first, len(words)):
            if words[number][0] >= end:
                break
            touched.append(number)
        if not touched or start == end:
            counts.num_spaces += 1
            continue
        for number in touched:
            tokens_of_word[number] += 1
        begins = [number for number in touched if words[number][0] >= start and tokens_of_word[number] == 1]
        place = words[begins[0]][0] if begins else max(start, words[touched[0]][0])
        script = find_text_script(line[place:end])
        (counts.starts if begins else counts.continuations)[script] += 1
    counts.num_split += sum(number > 1 for number in tokens_of_word)

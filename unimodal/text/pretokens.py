"""How text is cut before pieces are learned: no piece crosses a cut.

Words are cut as GPT-2 does (Radford et al. 2019), with three changes that make it fit every language: combining marks
belong to their letters, which keeps Indic words whole; English contractions have no rule of their own; digits follow
one of four rules. `left` and `right` group three digits from the left, as GPT-4's tokenizer does, or from the right, as
thousands are written (Singh and Strouse 2024, "Tokenization counts", arXiv:2402.14903); `single` makes every digit a
piece, as LLaMA's does; `free` leaves numbers to the learner.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, get_args

from tokenizers import Regex, pre_tokenizers

DigitRule = Literal["free", "single", "left", "right"]
DIGIT_RULES: tuple[str, ...] = get_args(DigitRule)

_DIGITS = {
    "free": r" ?\p{N}+",
    "single": r"\p{N}",
    "left": r"\p{N}{1,3}",
    "right": r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))",
}


def make_word_pattern(digits: DigitRule) -> str:
    """The expression whose matches are words, each with the space before it."""
    return rf" ?[\p{{L}}\p{{M}}]+|{_DIGITS[digits]}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+|\s+(?!\S)|\s+"


def make_chunk_pattern(digits: DigitRule) -> str:
    """The expression whose matches are lines, cut at numbers alone where these have a rule: spaces are no cuts."""
    if digits == "free":
        return r"[^\r\n]+|[\r\n]+"
    return rf"{_DIGITS[digits]}|[^\r\n\p{{N}}]+|[\r\n]+"


def make_splitter(pattern: str) -> dict[str, object]:
    """The step of a `tokenizer.json` that cuts text into the matches of a pattern."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def cut(pattern: str, texts: Iterable[str]) -> Iterator[str]:
    """The matches of a pattern in texts, one after the other; joined they are the texts."""
    splitter = pre_tokenizers.Split(Regex(pattern), "isolated")
    for text in texts:
        for piece, _ in splitter.pre_tokenize_str(text):
            yield piece

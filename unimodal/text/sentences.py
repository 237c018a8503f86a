"""Text → sentences, and sentences → pieces that can be said in one breath. Imports nothing heavy.

A sentence ends at `. ! ? …` before a space, unless the stop belongs to an abbreviation, an initial or a number, or the
next word goes on in lower case; at the marks of other scripts (`。！？ । ؟ ۔ ።`), which need no space; and at an empty
line. A sentence that is too long for one breath is cut at clauses, then between words, then, in scripts without spaces,
between letters, into pieces of about equal length. The pieces have all letters of the text, in order.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence


def _list_words(words: str) -> frozenset[str]:
    return frozenset(words.split())


#: words that end with a stop behind which the sentence goes on
ABBREVIATIONS = _list_words(
    """mr mrs ms mx dr prof st mt ft rev hon gen col maj capt lt sgt gov sen rep pres messrs mme mlle mm vs cf viz
    approx dept est fig figs nos vol vols pp ed eds al corp bros jan feb apr jun jul aug sep sept oct nov dec
    e.g i.e u.n ph.d
    m.d b.a m.a d.c a.k.a z.b d.h bzw ca nr str hr fr p.ex"""
)
#: the same, but a sentence may end with them, if a capital follows
ENDINGS = _list_words("etc usw a.m p.m inc ltd co jr sr u.s u.k")
#: both words and abbreviations: the latter only before a number
WORDS_TOO = _list_words("no mar sun sat")
_CLOSING = "\"'”’»)\\]}」』）】》〉"
_STOP = re.compile(
    rf"[.!?…]+[{_CLOSING}]*(?=\s)|[。！？｡।॥؟۔։።។၊။༎\u037e]+[{_CLOSING}]*|\n\s*\n"  # U+037E: the Greek question mark
)
_CLAUSE = re.compile(rf"[,;:،；：，、؛]+[{_CLOSING}]*(?=\s)|[，、；：،؛]+|\s[-–—]+(?=\s)|[—]+|[)\]）]+(?=\s)|\n+")
_WORD = re.compile(r"\S+")


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, without the spaces around them; [] for a text without letters and digits."""
    pieces, start = [], 0
    for stop in _STOP.finditer(text):
        if stop[0][0] in ".!?…" and not _is_sentence_end(text[start : stop.start()], stop[0], text[stop.end() :]):
            continue
        pieces.append(text[start : stop.end()])
        start = stop.end()
    return _join_wordless([*pieces, text[start:]])


def _is_sentence_end(before: str, mark: str, after: str) -> bool:
    """Whether a mark that a space follows ends the sentence that begins with `before`."""
    following = after.lstrip()
    first = next((letter for letter in following if letter.isalnum()), "")
    if not first:
        return True
    if first.islower():
        return False  # "etc. and", "3 p.m. on", "Well… yes" go on
    if mark.rstrip(_CLOSING.replace("\\", "")) != ".":
        return True
    word = re.split(r"[\s(\[\"'“‘«-]", before)[-1].lower()
    if word in ENDINGS:
        return True
    if word in WORDS_TOO:
        return not following[:1].isdigit()
    if word in ABBREVIATIONS:
        return False
    if len(word) == 1 and word.isalpha() and word != "i":
        return False  # an initial
    return not re.fullmatch(r"(?:[a-z]\.)+[a-z]", word)  # J.R.R. Tolkien


def _join_wordless(pieces: Sequence[str]) -> list[str]:
    """Joins pieces without a letter or digit (a dash, a bracket) to the piece before them."""
    found: list[str] = []
    for piece in pieces:
        if any(map(str.isalnum, piece)):
            found.append(piece.strip())
        elif found and piece.strip():
            found[-1] += piece.rstrip()
    return found


def measure_breath(text: str) -> int:
    """How long a text takes to say, in letters; one of a syllabic or logographic script counts as 3."""
    return sum(3 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text if letter.isprintable())


def split_utterances(text: str, most: int) -> list[str]:
    """The sentences of a text, those longer than `most` (see `measure_breath`) cut into shorter pieces.

    Raises ValueError, naming its length, for a word that is too long by itself.
    """
    return [piece for sentence in split_sentences(text) for piece in _split_long(sentence, most)]


def _split_long(sentence: str, most: int) -> list[str]:
    if measure_breath(sentence) <= most:
        return [sentence]
    clauses, start = [], 0
    for mark in _CLAUSE.finditer(sentence):
        clauses.append(sentence[start : mark.end()])
        start = mark.end()
    clauses = _join_wordless([*clauses, sentence[start:]])
    if len(clauses) > 1:
        if all(measure_breath(clause) <= most for clause in clauses):
            return _pack(clauses, " ", most)
        return [piece for clause in clauses for piece in _split_long(clause, most)]
    words = [piece for word in _WORD.findall(sentence) for piece in _split_word(word, most)]
    return _join_wordless(_pack(words, " ", most))


def _split_word(word: str, most: int) -> list[str]:
    """A word as it is or, if it is too long and its script has no spaces, cut between letters."""
    if measure_breath(word) <= most:
        return [word]
    if not any(_has_no_spaces(letter) for letter in word):
        shown = word if len(word) <= 40 else f"{word[:40]}…"
        raise ValueError(f"a word of {len(word):,} letters cannot be said at once ({shown!r}); write it in parts")
    letters = re.findall(
        r".[\u0300-\u036f\u0900-\u0903\u093a-\u094f\u0e31\u0e34-\u0e3a\u0e47-\u0e4e]*", word, re.DOTALL
    )
    return _pack(letters, "", most)


def _has_no_spaces(letter: str) -> bool:
    name = unicodedata.name(letter, "")
    return name.startswith(("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN"))


def _pack(pieces: Sequence[str], between: str, most: int) -> list[str]:
    """Joins neighbours into as few pieces as possible, none longer than `most`, and about equally long."""

    def fill(limit: int) -> list[str]:
        filled: list[str] = []
        for piece in pieces:
            if filled and measure_breath(filled[-1] + between + piece) <= limit:
                filled[-1] += between + piece
            else:
                filled.append(piece)
        return filled

    fewest = len(fill(most))
    least = max(map(measure_breath, pieces))
    return fill(_find_first(least, most, lambda limit: len(fill(limit)) <= fewest))


def _find_first(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The lowest number from low to high that fits. `high` must fit, and all numbers above one that fits."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return low

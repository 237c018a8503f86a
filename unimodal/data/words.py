"""The words of a concept's label and tags: what a right answer may say."""

from __future__ import annotations

import re
from collections.abc import Iterable

from unimodal.data.encoded_media import Concept

#: words that say nothing of a picture
STOP_WORDS = frozenset("a an and at by for from in is it of off on or over the to up with no not".split())  # noqa: SIM905


def split_words(text: str) -> list[str]:
    """Lower-case words of a text, in order, stop words left out."""
    return [word for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in STOP_WORDS]


def find_named(answer: str, names: Iterable[str]) -> set[str]:
    """The names whose words an answer has, but for those that are a part of a longer one: of "a hot dog", `hot dog` and
    not `dog`."""
    said = set(split_words(answer))
    held = {name: words for name in names if (words := set(split_words(name))) <= said and words}
    return {name for name, words in held.items() if not any(words < longer for longer in held.values())}


def is_right_answer(answer: str, concept: Concept) -> bool:
    """Whether the answer contains a word of the concept's label or of its tags."""
    right = {word for text in (concept.label, *concept.tags) for word in split_words(text)}
    return not right.isdisjoint(split_words(answer))

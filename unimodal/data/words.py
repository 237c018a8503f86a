"""The words of a concept's label and tags: what a right answer may say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: words that say nothing of a picture
STOP_WORDS = frozenset("a an and at by for from in is it of off on or over the to up with no not".split())  # noqa: SIM905


def words_of(text: str) -> list[str]:
    """Lower-case words of a text, in order, stop words left out."""
    return [word for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in STOP_WORDS]


def concept_words(concept: Mapping[str, Any]) -> tuple[frozenset[str], frozenset[str]]:
    """(words of the label, words of the tags) of one concept."""
    return frozenset(words_of(concept["label"])), frozenset(word for tag in concept["tags"] for word in words_of(tag))


def is_right_answer(answer: str, concept: Mapping[str, Any]) -> bool:
    """True if the answer contains a label or a tag word of the concept."""
    label, tags = concept_words(concept)
    return bool((label | tags) & set(words_of(answer)))

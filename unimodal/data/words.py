"""The words of a concept's label and tags: what a right answer may say, and the targets of the semantic codes.

Shapes: K concepts, W words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

#: words that say nothing of a picture
STOP_WORDS = frozenset("a an and at by for from in is it of off on or over the to up with no not".split())


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


def word_targets(concepts: Iterable[Mapping[str, Any]], label_weight: float = 3.0) -> tuple[list[str], np.ndarray]:
    """The words of the training concepts, sorted, and float32 [K, W] targets whose rows sum to 1 (0 for a row without known words).

    A word of the label weighs ``label_weight`` times a word that is only a tag.
    """
    concepts = list(concepts)
    known = sorted({word for c in concepts if c["split"] == "train" for word in frozenset.union(*concept_words(c))})
    column = {word: index for index, word in enumerate(known)}
    targets = np.zeros((len(concepts), len(known)), np.float32)
    for row, concept in enumerate(concepts):
        label, tags = concept_words(concept)
        for word in label | tags:
            if word in column:
                targets[row, column[word]] = label_weight if word in label else 1.0
    totals = targets.sum(1, keepdims=True)
    return known, targets / np.maximum(totals, 1e-9)

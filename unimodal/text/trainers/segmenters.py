"""Morphology before statistics: a function that cuts words before pieces are learned.

"Tokens with Meaning: A Hybrid Tokenization Approach for NLP" segments Turkish words by roots and affixes first
and leaves the rest to BPE. Here the analysis is anybody's: `module:function` names a function that takes a word and
returns its segments, which joined are the word. No piece then crosses a segment's end in training.

A `tokenizer.json` cannot call a function: encoding follows the learned pieces alone, so a word may still be cut
elsewhere. `unimodal text report --segments` measures how often. Its normalisation of sounds and shared rows of
affixes are not here.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator

from unimodal.files import describe_error
from unimodal.text.trainers.settings import Segmenter


def load_segmenter(name: str) -> Segmenter:
    """The function that `module:function` names, from an installed module or one in the working folder.

    Raises ValueError, in one line, for a name that leads to no function.
    """
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ValueError(f"segmenter {name!r} is not of the form module:function")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # whatever the module raises while it is imported
        raise ValueError(f"segmenter {name!r}: {module} cannot be imported ({describe_error(error)})") from None
    if not callable(found):
        raise ValueError(f"segmenter {name!r}: {module} has no function {function}")
    segmenter: Segmenter = found
    return segmenter


def cut_segments(words: Iterable[str], segmenter: Segmenter, name: str) -> Iterator[str]:
    """The segments of words, of which each is asked once; the space before a word stays with its first segment.

    Raises ValueError for segments that do not make the word.
    """
    known: dict[str, list[str]] = {}
    for word in words:
        if word not in known:
            known[word] = _cut_word(word, segmenter, name)
        yield from known[word]


def _cut_word(word: str, segmenter: Segmenter, name: str) -> list[str]:
    bare = word.removeprefix(" ")
    if not any(character.isalpha() for character in bare):
        return [word]
    try:
        segments = list(segmenter(bare))
    except Exception as error:  # of a function that is not ours
        raise ValueError(f"segmenter {name} fails on {bare!r} ({describe_error(error)})") from None
    if not all(isinstance(segment, str) and segment for segment in segments) or "".join(segments) != bare:
        raise ValueError(f"segmenter {name} gives {segments} for {bare!r}: joined they are to be the word")
    segments[0] = word[: len(word) - len(bare)] + segments[0]
    return segments

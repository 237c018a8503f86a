"""Among which rows each id of an answer is scored: those that could have been written in its place.

A model is taught, by default, and always writes with a softmax over the rows that the grammar allows. What it says of
other rows means nothing: behind a question its head may prefer the codes of a picture, which no grammar lets it write.
"""

from __future__ import annotations

from collections.abc import Sequence

from unimodal.generation.grammar import Grammar
from unimodal.generation.request import GenerationConfig
from unimodal.generation.spans import Ranges
from unimodal.vocabulary import Vocabulary

_MANY = 2**20  # more tokens than any answer: its budget takes no row away


def list_allowed_rows(
    vocabulary: Vocabulary, prompt: Sequence[int], answer: Sequence[int], allow: tuple[str, ...] | None = None
) -> list[Ranges]:
    """For each id of an answer [A] behind a prompt [N], the ranges of rows that the grammar allows there.

    allow: the modalities of which the answer may be; by default all. Raises ValueError for an id that cannot come next.
    """
    grammar = _make_grammar(vocabulary, prompt, allow)
    state, found = grammar.start(), []
    for row in answer:
        found.append(grammar.list_allowed(state))
        grammar.advance(state, row)
    return found


def list_next_rows(vocabulary: Vocabulary, prompt: Sequence[int]) -> Ranges:
    """The ranges of rows that the grammar allows behind a prompt [N], whose media may be any."""
    grammar = _make_grammar(vocabulary, prompt, None)
    return grammar.list_allowed(grammar.start())


def _make_grammar(vocabulary: Vocabulary, prompt: Sequence[int], allow: tuple[str, ...] | None) -> Grammar:
    return Grammar(vocabulary, GenerationConfig(max_new_tokens=_MANY, allow=allow), prompt)

"""Several methods at once: their contexts around a piece of work, and what they will leave of a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch

from unimodal.compression.method import Method
from unimodal.compression.plan import count_share
from unimodal.compression.running.session import CompressionSession, CompressionTarget
from unimodal.compression.running.spans import TurnState, find_input_spans
from unimodal.vocabulary import Vocabulary


@contextmanager
def open_methods(
    methods: Sequence[Method], target: CompressionTarget, vocabulary: Vocabulary | None = None
) -> Iterator[list[CompressionSession]]:
    """The contexts of all methods, the first outermost. Raises ValueError for what one of them refuses."""
    with ExitStack() as stack:
        yield [stack.enter_context(method(target, vocabulary)) for method in methods]


def estimate_kept(ids: Sequence[int], methods: Sequence[Method], vocabulary: Vocabulary) -> int:
    """How many of a prompt's ids [N] are about to be kept: every span loses the shares that methods drop.

    The words that a method with `scope="prompt"` drops, and what a method judges by its own rule, are not known before.
    """
    row, before = torch.tensor([list(ids)]), TurnState.begin(1)
    spans, _ = find_input_spans(row, torch.ones_like(row, dtype=torch.bool), vocabulary, vocabulary.media, before)
    gone = 0
    for span in spans:
        left = len(span.columns)
        for method in methods:
            if method.acts_on == "tokens" and method.shortens and span.modality in method.modalities:
                left = min(left, count_share(method.keep, len(span.columns)))  # of the span as it was read
        for method in methods:
            if method.acts_on == "cache" and method.shortens and span.modality in method.modalities:
                left = count_share(method.keep, left)  # of what reaches the cache
        gone += len(span.columns) - left
    return len(ids) - gone


def finds_work(ids: Sequence[int], methods: Sequence[Method], vocabulary: Vocabulary) -> bool:
    """Whether a prompt has something that the methods could shorten: without media, words of the scope "prompt"."""
    starts = {vocabulary.get_start_id(name) for name in vocabulary.media}
    return not starts.isdisjoint(ids) or any(method.acts_on_words for method in methods)

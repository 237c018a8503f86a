"""A memory of what the decoder has read: turns of a chat, and requests that begin alike, are not read again.

The cache of every finished stream is kept with its ids. A later prompt takes the longest beginning it shares with one
of them, whatever text or media it holds, and only the rest is read. The answers are those of a call without a session.
Make one session for each conversation; it holds keys and values of at most ``size`` streams, newest first.

Shapes: N tokens read by a stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unimodal.generation.engine import Engine


class GenerationSession:
    """Give it to `Engine.generate(..., session=…)`. It must not outlive a change of the model's weights: `clear` it."""

    def __init__(self, engine: Engine, size: int = 8) -> None:
        if size < 1:
            raise ValueError(f"a session of size {size} keeps nothing; give at least 1")
        self.engine, self.size = engine, size
        self._entries: list[tuple[tuple[int, ...], Any]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        self._entries.clear()

    def match(self, prompts: Sequence[Sequence[int]]) -> list[tuple[Any, int] | None]:
        """For each prompt the cache that begins most like it and how many of its tokens to take; the last token of a
        prompt is always read, since its hidden state is needed."""
        found: list[tuple[Any, int] | None] = []
        for prompt in prompts:
            best, length = None, 0
            for ids, cache in self._entries:
                shared = common_prefix(ids, prompt[: len(prompt) - 1])
                if shared > length:
                    best, length = cache, shared
            found.append(None if best is None else (best, length))
        return found

    def store(self, ids: Sequence[int], cache: Any) -> None:
        """Keep the cache [.., N, ..] of ``ids`` [N]; those that it contains, and the oldest, go."""
        kept = [entry for entry in self._entries if common_prefix(entry[0], ids) < len(entry[0])]
        self._entries = [(tuple(ids), cache), *kept][: self.size]


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """With how many equal items two sequences begin."""
    for index, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return index
    return min(len(a), len(b))

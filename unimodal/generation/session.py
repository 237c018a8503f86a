"""A memory of what the decoder has read: turns of a chat, and requests that begin alike, are not read again.

The cache of every finished stream is kept with its ids. A later prompt takes the longest beginning it shares with one
of them, whatever text or media it holds, and only the rest is read. The answers are those of a call without a session.
Make one session for each conversation; it holds keys and values of at most ``size`` streams, newest first.

Shapes: N tokens read by a stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unimodal.generation.decoders.step_decoder import Prefix, StepDecoder, StreamCache


@dataclass(frozen=True, eq=False)
class _Entry:
    ids: tuple[int, ...]  # [N]
    cache: StreamCache


class GenerationSession:
    """Give it to `Engine.generate(..., session=…)`. `clear` it when the model's weights change.

    decoder: whose caches these are; another one cannot read them. Raises ValueError for a size below 1.
    """

    def __init__(self, decoder: StepDecoder, size: int = 8) -> None:
        if size < 1:
            raise ValueError(f"a session of size {size} keeps nothing; give at least 1")
        self.decoder, self.size = decoder, size
        self._entries: list[_Entry] = []

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    def match(self, prompts: Sequence[Sequence[int]]) -> list[Prefix | None]:
        """For each prompt the cache that begins most like it and how many of its tokens to take; the last token of a
        prompt is always read, since its hidden state is needed."""
        found: list[Prefix | None] = []
        for prompt in prompts:
            best: Prefix | None = None
            for entry in self._entries:
                shared = count_common(entry.ids, prompt[: len(prompt) - 1])
                if shared > (0 if best is None else best.num_tokens):
                    best = Prefix(entry.cache, shared)
            found.append(best)
        return found

    def store(self, ids: Sequence[int], cache: StreamCache) -> None:
        """Keep the cache of ``ids`` [N]; entries that are a beginning of it, and the oldest, go."""
        kept = [entry for entry in self._entries if count_common(entry.ids, ids) < len(entry.ids)]
        self._entries = [_Entry(tuple(ids), cache), *kept][: self.size]


def count_common(a: Sequence[int], b: Sequence[int]) -> int:
    """With how many equal items two sequences begin."""
    for index, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return index
    return min(len(a), len(b))

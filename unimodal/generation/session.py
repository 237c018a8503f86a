"""A session keeps the caches of streams, so that earlier turns and shared beginnings are not read again.

The cache of every finished stream is kept with its ids. A later prompt reuses the longest beginning that it shares with
one of them, whatever text or media it holds, and only the rest is read. Answers are the same as without a session. Make
one session for each conversation; it holds keys and values of at most ``size`` streams, the newest.

Shapes: N tokens read by a stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unimodal.generation.decoders.shared_prompts import count_common
from unimodal.generation.decoders.step_decoder import CachedPrefix, Prompts, StepDecoder, StreamCache
from unimodal.vocabulary.positions import Position


@dataclass(frozen=True, eq=False)
class _Entry:
    ids: tuple[Position, ...]  # [N]
    cache: StreamCache


class GenerationSession:
    """Caches for `Engine.generate(..., session=…)`. Call `clear` when the model's weights change.

    decoder: the one that made the caches; no other can read them. Raises ValueError for a size below 1.
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

    def match(self, prompts: Prompts) -> list[CachedPrefix | None]:
        """For each prompt the longest beginning that a cache holds, or None.

        It never holds the whole prompt: the last token must be read for its hidden state.
        """
        found: list[CachedPrefix | None] = []
        for prompt in prompts:
            best: CachedPrefix | None = None
            for entry in self._entries:
                shared = count_common(entry.ids, prompt[: len(prompt) - 1])
                if shared >= entry.cache.least and shared > (0 if best is None else best.num_tokens):
                    best = CachedPrefix(entry.cache, shared)
            found.append(best)
        return found

    def store(self, ids: Sequence[Position], cache: StreamCache) -> None:
        """Keep the cache of ``ids`` [N]; drop entries that are a beginning of it, and the oldest beyond ``size``."""
        kept = [entry for entry in self._entries if count_common(entry.ids, ids) < len(entry.ids)]
        self._entries = [_Entry(tuple(ids), cache), *kept][: self.size]

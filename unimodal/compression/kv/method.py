"""What a cache method is: it scores the entries of every head; the executor drops or selects by the scores.

Only evictable entries are compared: the codes of input spans, and with the scope "prompt" words too. Entries of media
that the model writes, of turn marks and of span ends always stay.

Shapes: B rows, H query heads, K key/value heads, Q new tokens, L slots, W head width.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

from torch import Tensor

from unimodal.compression.method import Method
from unimodal.compression.running.look import Look
from unimodal.compression.running.session import CompressionSession, CompressionTarget
from unimodal.vocabulary import Vocabulary


@dataclass
class CacheCompressor(Method):
    """A method that acts on the cache: every key/value head keeps, or attends to, its best entries.

    keep: the share of evictable entries that stays. scope: "media", entries of input spans are evictable; "prompt",
    entries of words too. recent: within the share, entries among this many newest slots stay before all others.

    Raises ValueError for an unknown scope and for a negative `recent`, and for what `Method` refuses.
    """

    _: KW_ONLY
    scope: Literal["media", "prompt"] = "media"
    recent: int = 0

    acts_on: ClassVar[Literal["cache"]] = "cache"
    #: evict: drop entries after the prompt; select: attend to some of them at every step behind the prompt; prefill:
    #: attend sparsely within the prompt
    acts: ClassVar[Literal["evict", "select", "prefill"]] = "evict"
    #: whether a method that evicts scores, and drops, at every step behind the prompt too
    at_every_step: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scope not in ("media", "prompt"):
            raise ValueError(f"scope {self.scope!r} is unknown; use media or prompt")
        if self.recent < 0:
            raise ValueError(f"recent is {self.recent}; it is a number of entries, at least 0")

    def __call__(self, model: CompressionTarget, vocabulary: Vocabulary | None = None) -> CompressionSession:
        return CompressionSession(self, model, vocabulary)

    @abstractmethod
    def score(self, look: Look) -> Tensor:
        """The worth of every slot to every key/value head, float [B, K, L]."""

    def observe(self, look: Look) -> None:
        """Called with the prompt of a method that selects; nothing is dropped there."""

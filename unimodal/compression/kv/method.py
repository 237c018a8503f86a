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

from unimodal.compression.method import Method, check_share
from unimodal.compression.running.look import Look
from unimodal.compression.running.session import CompressionSession, CompressionTarget
from unimodal.vocabulary import Vocabulary

#: how a method acts, see `CacheCompressor`
Acts = Literal["evict", "select", "prefill", "store", "replay", "mix"]
ALWAYS = 1e5  # the score of an entry that stays before all others but the recent ones


@dataclass
class CacheCompressor(Method):
    """A method that acts on the cache: every key/value head keeps, or attends to, its best entries.

    keep: the share that stays of all evictable entries that were read, in this call and in earlier ones. scope:
    "media", entries of input spans are evictable; "prompt", entries of words too. recent: within the share, entries
    among this many newest ones stay before all others. recent_share: the same as a share of the entries that stay; the
    larger number counts.

    Raises ValueError for an unknown scope, a negative `recent`, a `recent_share` outside [0, 1], and for what `Method`
    refuses.
    """

    _: KW_ONLY
    scope: Literal["media", "prompt"] = "media"
    recent: int = 0
    recent_share: float = 0.0

    acts_on: ClassVar[Literal["cache"]] = "cache"
    #: evict: drop entries when a prompt or a later turn was read; select: attend to some of them at every step behind
    #: the prompt; prefill: attend sparsely within the prompt; store: pack entries into few bits; replay: evict by
    #: the attention of a second reading; mix: compute the attention itself, and turn entries into a state
    acts: ClassVar[Acts] = "evict"
    #: whether a method that evicts scores, and drops, at every step behind the prompt too
    at_every_step: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scope not in ("media", "prompt"):
            raise ValueError(f"scope {self.scope!r} is unknown; use media or prompt")
        if self.recent < 0:
            raise ValueError(f"recent is {self.recent}; it is a number of entries, at least 0")
        check_share("recent_share", self.recent_share)

    @property
    def acts_on_words(self) -> bool:
        return self.scope == "prompt"

    def __call__(self, model: CompressionTarget, vocabulary: Vocabulary | None = None) -> CompressionSession:
        return CompressionSession(self, model, vocabulary)

    def check(self, num_layers: int) -> None:
        """Raises ValueError, in one line, for a model that this method does not go with."""

    @abstractmethod
    def score(self, look: Look) -> Tensor:
        """The worth of every slot to every key/value head, float [B, K, L].

        A method that attends sparsely within the prompt may score for every query head instead, [B, H, L]. One that
        packs scores those above 0 that it packs.
        """

    def is_active(self, look: Look) -> bool:
        """Whether the method acts in this layer."""
        return True

    def count_kept(self, look: Look, scores: Tensor, num: Tensor) -> Tensor:
        """How many of a row's `num` evictable entries stay, or are attended to, int64 [B], or [B, K] for each head."""
        return (num * self.keep).round().long().clamp(min=1)

    def count_recent(self, kept: Tensor) -> Tensor:
        """How many of the newest entries stay before all others, int64 [B], where `kept` entries stay in all.

        kept: int64 [B], or [B, K].
        """
        kept = kept if kept.ndim == 1 else kept.amin(1)
        return (kept * self.recent_share).long().clamp(min=self.recent)

    def count_chunk(self, num: int) -> int | None:
        """How many of the `num` tokens of a prompt or a later turn a method that selects reads at a time.

        None: it attends to all of them in full, and selects at the steps of the answer only.
        """
        return None

    def mix(self, look: Look) -> tuple[Tensor, Tensor, Tensor] | None:
        """Of a method that mixes: the attention [B, Q, H, W] of the new tokens, which entries go now, bool [B, K, L],
        and what is added for them to `MethodState.summary`; None to leave the attention as it is."""
        raise NotImplementedError

    @property
    def repetition(self) -> tuple[tuple[int, ...], int]:
        """Of a method that reads a prompt twice: the ids before the second reading, and how many first entries stay."""
        raise NotImplementedError

    @property
    def packing(self) -> tuple[int, int]:
        """In how many bits a method that packs stores a number, and how many numbers share a scale."""
        raise NotImplementedError

    def observe(self, look: Look) -> None:
        """Called with each prompt or later turn of a method that selects, before it is attended to."""

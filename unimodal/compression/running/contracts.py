"""The executor's contracts with methods, so that it needs none of their classes.

`Compressor` of `method.py` is a `TokenMethod`, `CacheCompressor` of `kv/method.py` a `CacheMethod`. `acts_on` says
which of the two a method is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

from torch import Tensor, nn

from unimodal.compression.plan import CompressionStats, KeptTokens, Plan, Positions, Span
from unimodal.compression.running.look import Look
from unimodal.compression.running.spans import LocatedSpan


class TokenMethod(Protocol):
    """Plans which tokens of a span go on; `Compressor` says what each of these does."""

    acts_on: ClassVar[Literal["tokens"]]
    judges_rows: ClassVar[bool]
    previews: ClassVar[bool]
    shortens: ClassVar[bool]
    keep: float
    modalities: tuple[str, ...]
    positions: Positions

    @property
    def acts_on_words(self) -> bool: ...

    def find_sites(self, num_layers: int) -> tuple[int, ...]: ...

    def find_watched_layers(self, num_layers: int) -> tuple[int, ...]: ...

    def find_changing_layers(self, num_layers: int) -> tuple[int, ...]: ...

    def check(self, num_layers: int) -> None: ...

    def count_kept(self, spans: Sequence[Span], num_layers: int) -> list[int]: ...

    def give_hints(self, spans: Sequence[Span]) -> list[Tensor] | None: ...

    def plan(self, hidden: Tensor, span: Span) -> Plan: ...


class CacheMethod(Protocol):
    """Scores the entries of a cache layer; `CacheCompressor` says what each of these does."""

    acts_on: ClassVar[Literal["cache"]]
    acts: ClassVar[Literal["evict", "select", "prefill", "store", "replay", "mix"]]
    at_every_step: ClassVar[bool]
    keep: float
    modalities: tuple[str, ...]
    positions: Positions
    scope: Literal["media", "prompt"]

    def check(self, num_layers: int) -> None: ...

    @property
    def packing(self) -> tuple[int, int]: ...

    @property
    def repetition(self) -> tuple[tuple[int, ...], int]: ...

    def score(self, look: Look) -> Tensor: ...

    def is_active(self, look: Look) -> bool: ...

    def count_kept(self, look: Look, scores: Tensor, num: Tensor) -> Tensor: ...

    def count_recent(self, kept: Tensor) -> Tensor: ...

    def count_chunk(self, num: int) -> int | None: ...

    def mix(self, look: Look) -> tuple[Tensor, Tensor, Tensor] | None: ...

    def observe(self, look: Look) -> None: ...


class CacheWatcher(Protocol):
    """Looks at every layer of a call, and changes nothing."""

    acts: ClassVar[Literal["watch"]]

    def observe(self, look: Look) -> None: ...


@dataclass(eq=False)
class OpenMethod:
    """A method whose context is open on a decoder, and its results.

    head: what makes logits of the decoder's states; None: its embeddings do. chosen: span → places, int64 [M], of the
    tokens that it kept in the last call with input spans. rows: of each row of the last prompt that was read with a
    cache, its tokens and what the cache keeps of them. users: how often it was entered and not left, in all threads.
    """

    method: TokenMethod | CacheMethod
    backbone: nn.Module
    head: nn.Module | None = None
    stats: CompressionStats = field(default_factory=CompressionStats)
    chosen: dict[LocatedSpan, Tensor] = field(default_factory=dict)
    rows: list[KeptTokens] = field(default_factory=list)
    users: int = 0

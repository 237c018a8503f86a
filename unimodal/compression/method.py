"""What a compression method is: it looks at the tokens of an input span and returns a plan; the executor does the rest.

A method never touches the model. `plan` says which tokens of a span go on, what they carry, which positions they have
and for how many tokens each stands. Used as a context manager:

    with DivPrune(keep=0.25)(model):  # a loaded `Unimodal`, its `Engine`, or a Hugging Face decoder and its vocabulary
        ...

Only spans that the model reads are compressed: complete, in a system's or user's turn. What it writes is left alone.

Shapes: B spans of one length (each in a row of its own or not), N their tokens, M tokens that go on, D width, P source
positions of a merged token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from unimodal.media.registry import MEDIA
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from unimodal.compression.running.session import Session

#: whose attention a span's tokens may be judged by: its own end token, the last token of the row, the words behind it
Query = Literal["summary", "last", "after"]


@dataclass(frozen=True, eq=False)
class Plan:
    """What becomes of the N tokens of a span; every field but `index` is optional.

    index: int64 [B, M], ascending: the tokens in whose place something goes on.
    merge: [B, M, N], what goes on is `merge @ hidden`; without it the tokens of `index` as they are (pruning).
    states: [B, M, D], what goes on, computed by a learned module; in place of `merge`.
    sizes: [B, M], for how many original tokens each stands; log(size) is added to the attention over keys.
    members: int64 [B, M, P], tokens whose positions share out the rotary frequencies of the merged token (PPE).
    """

    index: Tensor
    merge: Tensor | None = None
    states: Tensor | None = None
    sizes: Tensor | None = None
    members: Tensor | None = None


class Source(Protocol):
    """Where a span's attention and transitions come from: the running model, or a test."""

    def received(self, span: Span, query: Query, layer: int) -> Tensor: ...

    def transitions(self, span: Span) -> Tensor: ...


@dataclass(eq=False)
class Span:
    """Spans of one modality and length, seen at one site.

    count: tokens to go on. segments: lengths of the runs of codes (frames, codebooks), N in all, before any pruning.
    original: the number of tokens at first. layer: the site; 0 is before the decoder.
    """

    hidden: Tensor  # [B, N, D]
    ids: Tensor  # int64 [B, N], the rows of the vocabulary
    sizes: Tensor  # [B, N]
    modality: str = "image"
    count: int = 1
    segments: tuple[int, ...] = ()
    original: int = 0
    layer: int = 0
    hint: Tensor | None = None  # [B, N], what `hints` said of the tokens
    source: Source | None = field(default=None, repr=False)
    place: Any = field(default=None, repr=False)  # (rows [B], slots [B, N]) for the source

    @classmethod
    def of(cls, hidden: Tensor, count: int, segments: Sequence[int] = (), **fields: Any) -> Span:
        """Spans that belong to no model, from their states [B, N, D] alone."""
        num = hidden.shape[1]
        ids = torch.arange(num, device=hidden.device).expand(hidden.shape[:2])
        sizes = hidden.new_ones(hidden.shape[:2])
        return cls(hidden, ids, sizes, count=count, segments=tuple(segments) or (num,), original=num, **fields)

    def __len__(self) -> int:
        return self.hidden.shape[1]

    def received(self, query: Query, layer: int | None = None) -> Tensor:
        """Attention [B, N] that the tokens get from `query` in a layer before this site (the last one), mean of heads.

        The method must have named the layer in `watches`.
        """
        assert self.source is not None, "this span has no attention"
        return self.source.received(self, query, self.layer - 1 if layer is None else layer)

    def transitions(self) -> Tensor:
        """How much the tokens changed in the layers named by `transitions_of`, [B, N] (see TransPrune)."""
        assert self.source is not None, "this span has no transitions"
        return self.source.transitions(self)


@dataclass
class Method(ABC):
    """Settings that all methods share, those for tokens and those for the cache.

    Raises ValueError for a keep outside (0, 1], an unknown medium or position rule.

    positions: "kept", every token keeps the position it had and decoding goes on at the original length; "compacted",
    positions are counted again without the tokens that are gone, and decoding goes on behind them.
    """

    keep: float = 0.5  # share of a span's tokens that go on
    _: KW_ONLY
    modalities: tuple[str, ...] = field(default_factory=lambda: tuple(MEDIA))
    positions: Literal["kept", "compacted"] = "kept"

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep is {self.keep}; it is the share of tokens to keep, above 0 and at most 1")
        if unknown := set(self.modalities) - set(MEDIA):
            raise ValueError(f"{sorted(unknown)[0]!r} cannot be compressed; choose from {', '.join(MEDIA)}")
        if self.positions not in ("kept", "compacted"):
            raise ValueError(f"positions {self.positions!r} is unknown; use kept or compacted")

    def __call__(self, model: Any, vocabulary: Vocabulary | None = None) -> Session:
        """A context in which `model` compresses what it reads. A bare decoder needs its vocabulary, to find spans."""
        from unimodal.compression.running.session import Session

        return Session(self, model, vocabulary)


@dataclass
class Compressor(Method):
    """A method that acts on the tokens, before the decoder or between its layers."""

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """The sites: 0 is before the decoder, k before its layer k."""
        return (0,)

    def watches(self, num_layers: int) -> tuple[int, ...]:
        """Layers whose queries and keys the plan needs, for `Span.received`."""
        return ()

    def transitions_of(self, num_layers: int) -> tuple[int, ...]:
        """Layers whose change of the tokens the plan needs, for `Span.transitions`."""
        return ()

    def check(self, num_layers: int) -> None:
        """ValueError, in one line, for a model that lacks the layers which this method acts at or looks at."""
        needed = (*self.layers(num_layers), *self.watches(num_layers), *self.transitions_of(num_layers))
        if not all(0 <= layer < num_layers for layer in needed):
            name = type(self).__name__
            raise ValueError(
                f"{name} acts before layer {max(needed)}, but this model has {num_layers}, numbered from 0"
            )

    def counts(self, spans: Sequence[Span], num_layers: int) -> list[int]:
        """Tokens that go on of each of the spans of one row, which come as spans of B = 1."""
        return [share(self.keep, span.original) for span in spans]

    def hints(self, spans: Sequence[Span]) -> list[Tensor] | None:
        """What only the spans of a row together tell of each one's tokens, [1, N] each; it comes as `span.hint`."""
        return None

    @abstractmethod
    def plan(self, hidden: Tensor, span: Span) -> Plan:
        """hidden [B, N, D] -> a plan that keeps `span.count` < N tokens of each."""


def share(keep: float, num: int) -> int:
    """The number of tokens that a share is, at least one of them unless the share is 0 (a crop without any weight)."""
    return min(num, max(1, round(keep * num))) if keep > 0 else 0

"""The input of a method, spans of tokens to shorten, and its output, a plan.

This file is at the bottom of the package: the methods import it, and so does `running/`.

A *span* is the run of codes of one picture, sound or clip in the input. A *site* is a place where a method acts:
site 0 lies before the decoder, site k before its layer k.

Shapes: B spans of one length (each in a row of its own or not), N their tokens, M tokens that go on, D width, P source
positions of a merged token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

#: whose attention scores a span's tokens: the span's end token, the last token of the row, the words behind the span,
#: or those of them that are related to it, nearer to its embeddings than the mean word (SparseVLM)
Query = Literal["summary", "last", "after", "related"]

#: the positions of tokens behind dropped ones (see `Method`)
Positions = Literal["kept", "compacted"]


@dataclass(frozen=True, eq=False)
class Plan:
    """How the N tokens of each span become M; every field but `index` is optional.

    index: int64 [B, M], ascending, the tokens whose places are kept.
    merge: [B, M, N]: the states become `merge @ hidden`; without it those of `index` stay as they are (pruning).
    states: [B, M, D], computed by a learned module, in place of `merge @ hidden`.
    sizes: [B, M], for how many original tokens each stands; log(size) is added to the attention over keys.
    members: int64 [B, M, P], tokens whose positions divide the merged token's rotary frequencies among them (PPE).
    gates: [B, M], factors of what the feed-forward of the coming layer adds to each (p-MoD).
    feed_forward: what takes the place of the coming layer's feed-forward for these tokens, of all spans together: their
    states as they enter it, [n, D], to [n, D] (ACM).
    back: how the N tokens come back at a later site; None: those that go are gone.
    """

    index: Tensor
    merge: Tensor | None = None
    states: Tensor | None = None
    sizes: Tensor | None = None
    members: Tensor | None = None
    gates: Tensor | None = None
    feed_forward: Callable[[Tensor], Tensor] | None = None
    back: Return | None = None


class Return(NamedTuple):
    """How the tokens of a span come back, those that went and those that stayed.

    site: the site before which they do, above that of the plan; the number of layers is behind the last. taken: float
    [B, N, M], their states then are `taken @ states` of those that stayed, plus `own` times those with which they were
    planned, or times `states` [B, N, D]. own: float [B, N]. A token for which both are zero does not come back. No
    tokens are moved up behind those that go, and they may not get sizes or members.
    """

    site: int
    taken: Tensor
    own: Tensor
    states: Tensor | None = None


class SpanPlace(NamedTuple):
    """The places of the tokens of B spans in the running model's batch."""

    rows: Tensor  # int64 [B]
    columns: Tensor  # int64 [B, N]
    ends: Tensor  # int64 [B], the columns of the end tokens
    whole: Tensor  # int64 [B, N as read], the places of all tokens of the span in the call


class SpanObserver(Protocol):
    """Measures how a model treats the tokens of a span: the running model, or a stand-in in a test."""

    def measure_attention(self, span: Span, query: Query, layer: int) -> Tensor: ...

    def measure_attention_inside(self, span: Span, layer: int) -> Tensor: ...

    def measure_keys(self, span: Span, layer: int) -> Tensor: ...

    def measure_transitions(self, span: Span) -> Tensor: ...

    def measure_confidence(self, span: Span) -> tuple[Tensor, Tensor]: ...

    def measure_contributions(self, span: Span, num_layers: int) -> Tensor: ...

    def spell(self, states: Tensor) -> Tensor: ...

    def embed(self, ids: Tensor) -> Tensor: ...


@dataclass(eq=False)
class Span:
    """B spans of one modality and one length, as a method sees them at one site.

    hidden: [B, N, D], the states that reach the site. ids: int64 [B, N], rows of the vocabulary.
    sizes: [B, N], for how many original tokens each token stands. count: the number M of tokens to keep of each span.
    segments: lengths of the runs of codes (one a frame or codebook) before any pruning. original: the number of tokens
    then. layer: the site. num_layers: of the model. hint: [B, N], the scores of `Compressor.give_hints`, if any.
    """

    hidden: Tensor
    ids: Tensor
    sizes: Tensor
    modality: str = "image"
    count: int = 1
    segments: tuple[int, ...] = ()
    original: int = 0
    layer: int = 0
    num_layers: int = 1
    hint: Tensor | None = None
    observer: SpanObserver | None = field(default=None, repr=False)
    place: SpanPlace | None = field(default=None, repr=False)  # for the observer

    @classmethod
    def from_states(
        cls,
        hidden: Tensor,
        count: int,
        segments: Sequence[int] = (),
        modality: str = "image",
        layer: int = 0,
        observer: SpanObserver | None = None,
        num_layers: int = 1,
    ) -> Span:
        """Spans without a model, from their states [B, N, D] alone."""
        num = hidden.shape[1]
        ids = torch.arange(num, device=hidden.device).expand(hidden.shape[:2])
        sizes = hidden.new_ones(hidden.shape[:2])
        runs = tuple(segments) or (num,)
        return cls(hidden, ids, sizes, modality, count, runs, num, layer, num_layers, observer=observer)

    def __len__(self) -> int:
        return self.hidden.shape[1]

    def measure_attention(self, query: Query, layer: int | None = None) -> Tensor:
        """The attention that the tokens receive from `query` in a layer, the mean over heads, float32 [B, N].

        layer: by default the last before this site; `find_watched_layers` of the method must name it. The site itself
        is the coming layer, for a method that `previews`.
        """
        assert self.observer is not None, "this span has no attention"
        return self.observer.measure_attention(self, query, self.layer - 1 if layer is None else layer)

    def measure_attention_inside(self, layer: int | None = None) -> Tensor:
        """The attention that the tokens pay to each other in a layer, the mean over heads, float32 [B, N, N].

        layer: as in `measure_attention`.
        """
        assert self.observer is not None, "this span has no attention"
        return self.observer.measure_attention_inside(self, self.layer - 1 if layer is None else layer)

    def measure_keys(self, layer: int | None = None) -> Tensor:
        """The keys of the tokens in a layer, the mean over heads, with their positions turned back, [B, N, W].

        layer: as in `measure_attention`.
        """
        assert self.observer is not None, "this span has no keys"
        return self.observer.measure_keys(self, self.layer - 1 if layer is None else layer)

    def measure_transitions(self) -> Tensor:
        """How much the tokens changed in the layers of `find_changing_layers` so far, [B, N] (see TransPrune)."""
        assert self.observer is not None, "this span has no transitions"
        return self.observer.measure_transitions(self)

    def measure_contributions(self) -> Tensor:
        """How much of each token there is in the last token of its row behind the layers before this site, [B, N].

        A layer keeps half of a token, and fills the other half by the lengths of what its heads bring: attention times
        the length of the value. `find_watched_layers` of the method must name all layers before the site.
        """
        assert self.observer is not None, "this span has no attention"
        return self.observer.measure_contributions(self, self.layer)

    def measure_confidence(self) -> tuple[Tensor, Tensor]:
        """What the model's head would say behind each token if this site were the end: the most likely row of the
        vocabulary, int64 [B, N], and before it its probability, float32 [B, N]."""
        assert self.observer is not None, "this span has no head"
        return self.observer.measure_confidence(self)

    def spell(self, states: Tensor) -> Tensor:
        """What the model's head says of states [..., D] as if they were those behind the last layer, [..., V]."""
        assert self.observer is not None, "this span has no head"
        return self.observer.spell(states)

    def embed(self, ids: Tensor) -> Tensor:
        """Rows of the vocabulary, int64 [...], as the model reads them: [..., D]."""
        assert self.observer is not None, "this span has no embeddings"
        return self.observer.embed(ids)


@dataclass
class CompressionStats:
    """Statistics of a context since it was opened.

    tokens_before: tokens of input spans that were read. tokens_after: those of them left at the last layer.
    planning_s: seconds spent on choosing tokens, including the device's work.
    """

    tokens_before: int = 0
    tokens_after: int = 0
    planning_s: float = 0.0


class KeptTokens(NamedTuple):
    """What compression left of one prompt.

    num: its tokens. kept: those that the cache holds, the mean over layers and heads, rounded.
    """

    num: int
    kept: int


def count_share(keep: float, num: int) -> int:
    """The share `keep` of `num` tokens as a number: at least 1, but 0 for a share of 0 (a crop without weight)."""
    return min(num, max(1, round(keep * num))) if keep > 0 else 0

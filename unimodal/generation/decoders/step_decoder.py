"""What a decoder promises to the engine: it holds streams of tokens, and a step appends tokens to all of them.

A stream is the tokens of one prompt and its answer, in order, each with its keys and values. The hidden state of a
token depends on the tokens of its own stream up to it and on nothing else: not on the other streams, nor on how many
tokens were read at a time. Every decoder gives the hidden states of the model's own forward, to 1e-5 in float32; narrow
copies of the weights lose what their precision implies (`products.py`), as narrow caches do (`kv_cache.py`).

All methods run under `torch.inference_mode`. One thread at a time may use a decoder.

Shapes: S streams, N tokens of a prompt, P tokens of a step, V latest tokens of a stream, K key/value heads, W head
width, E width of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from unimodal.generation.decoders.cache_size import LayersSize
from unimodal.vocabulary.positions import Position

#: the tokens of each prompt: rows of the vocabulary, or all rows of a summed position
Prompts = Sequence[Sequence[Position]]


@dataclass(frozen=True, eq=False)
class StreamCache:
    """The keys and values of the N tokens of one stream, [..., K, N, W] each, for the kind of decoder that made it.

    least: a beginning of fewer tokens cannot be taken from it, since layers with windows hold what theirs still see.
    """

    parts: Sequence[Tensor]
    least: int = 0


@dataclass(frozen=True, eq=False)
class CachedPrefix:
    """A beginning of a prompt that need not be read: its first ``num_tokens`` tokens are in ``cache``."""

    cache: StreamCache
    num_tokens: int


class StepDecoder(Protocol):
    """Streams that start together. `ReferenceDecoder`, `LeanDecoder`, `PackedDecoder` and `CompiledDecoder` are such.

    num_computed: the most tokens of a prompt that the last `prefill` read; those before came from a prefix, or from
    another stream. num_bytes: of keys and values, that memory is taken for.
    """

    num_computed: int

    @property
    def num_bytes(self) -> int: ...

    def measure_layers(self) -> Sequence[LayersSize]:
        """What its layers keep of a token. Another thread may call this."""

    def prefill(
        self, prompts: Prompts, pad_id: int, capacity: int, prefixes: Sequence[CachedPrefix | None] = ()
    ) -> Tensor:
        """Forget all streams, read S prompts of unequal lengths and return their last hidden states, [S, E].

        pad_id: a row of the vocabulary that fills up short prompts; no token sees it. capacity: tokens of a stream to
        allocate memory for; a longer stream costs a copy. prefixes: for each prompt a beginning that need not be read,
        or None; empty if there are none. The last token of every prompt is always read.
        """

    def step(
        self, ids: Tensor, offsets: Tensor | None = None, visible: Tensor | None = None, every: bool = False
    ) -> Tensor:
        """Append ids [S, P] to the streams; return the last hidden states [S, E], or with ``every`` all, [S, P, E].

        Summed positions are ids [S, P, G], with -1 for codes that a position does not have.
        offsets: int64 [S, P], each token's position relative to the stream's next one; by default 0, 1, …, P - 1.
        visible: bool [S or 1, P, V], which of the stream's latest V tokens (the P new ones are the last) each token
        sees; all earlier ones are seen. By default a token sees itself and all before it.
        """

    def commit(self, kept: Sequence[Sequence[int]], num_new: int) -> None:
        """Keep only those of each stream's last ``num_new`` tokens that ``kept`` numbers (ascending, from 0).

        Streams may keep unequal numbers of tokens. Kept tokens are not computed again, even if they saw dropped ones.
        Raises ValueError if a layer does not hold all tokens (a sliding window).
        """

    def keep(self, streams: Sequence[int]) -> None:
        """Keep these streams, in this order, and drop the others. A stream that is named twice is copied."""

    def export(self, stream: int) -> StreamCache:
        """A copy of a stream's keys and values, for a later `CachedPrefix`."""

    def count_read(self, stream: int) -> int:
        """The number of tokens of a stream."""


class SlotDecoder(StepDecoder, Protocol):
    """A `StepDecoder` whose streams come and go: further ones can `join`.

    num_bytes_used: what the streams take of memory, their answers to come included.
    """

    @property
    def num_bytes_used(self) -> int: ...

    def count_needed(self, prompts: Prompts, capacities: Sequence[int]) -> int:
        """The bytes that these prompts would add to ``num_bytes_used``, with capacities as of `join`."""

    def join(
        self,
        prompts: Prompts,
        pad_id: int,
        capacities: Sequence[int],
        prefixes: Sequence[CachedPrefix | None] = (),
    ) -> Tensor:
        """Read prompts as further streams, numbered after the others; return their last hidden states, [new, E].

        Equal prompts are read once. capacities: the most tokens that each will hold. prefixes: as of `prefill`. Raises
        ValueError if a layer does not hold all tokens (a sliding window).
        """

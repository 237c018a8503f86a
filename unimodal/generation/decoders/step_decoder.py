"""What a decoder promises to the engine: it holds streams of tokens, and one step appends tokens to all of them.

A stream is what one prompt and its answer have become: an ordered list of tokens, each with its keys and values. The
hidden state of a token depends on the tokens of its own stream up to it and on nothing else: not on the other streams,
nor on how many tokens were read at a time. Every decoder gives the hidden states of the model's own forward, to 1e-5 in
float32; narrow copies of the weights lose what their precision says (`packed_decoder.py`).

All methods run under `torch.inference_mode`. One thread at a time may use a decoder.

Shapes: S streams, N tokens of a prompt, P tokens of a step, V latest tokens of a stream, K key/value heads, W head
width, E width of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, eq=False)
class StreamCache:
    """The keys and values of the N tokens that one stream has read: for each layer both, [K, N, W]."""

    layers: Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Prefix:
    """A beginning of a prompt that need not be read: its first ``num_tokens`` are those of ``cache``."""

    cache: StreamCache
    num_tokens: int


class StepDecoder(Protocol):
    """Streams that start together. `ReferenceDecoder`, `LeanDecoder`, `PackedDecoder` and `CompiledDecoder` are such.

    num_computed: of every prompt, the last so many tokens were read by the last `prefill`; those before came from a
    prefix.
    """

    num_computed: int

    def prefill(
        self, prompts: Sequence[Sequence[int]], pad_id: int, capacity: int, prefixes: Sequence[Prefix | None] = ()
    ) -> Tensor:
        """Forget all streams, read S prompts of unequal lengths and return their last hidden states, [S, E].

        pad_id: a row of the vocabulary to fill short prompts with; it is never seen. capacity: the most tokens that a
        stream is likely to hold, which is what memory is taken for; more cost a copy. prefixes: for each prompt what
        need not be read again, or None; empty for none at all. At least the last token of every prompt is read.
        """

    def step(
        self, ids: Tensor, offsets: Tensor | None = None, visible: Tensor | None = None, every: bool = False
    ) -> Tensor:
        """Append ids [S, P] to the streams and return the last hidden states [S, E], or with ``every`` all, [S, P, E].

        offsets [S, P]: the position of each token, counted from the stream's next one, in place of 0, 1, …, P - 1.
        visible bool [S or 1, P, V]: which of the stream's latest V tokens, these P included and last, each token sees;
        all before them are seen. Without it a token sees those before it and itself.
        """

    def commit(self, kept: Sequence[Sequence[int]], num_new: int) -> None:
        """Of the last ``num_new`` tokens of each stream keep only those numbered ``kept`` (ascending, from 0).

        Streams may keep unequal numbers. What a kept token has seen is not computed again. Raises ValueError where a
        layer does not hold all tokens (a sliding window).
        """

    def keep(self, streams: Sequence[int]) -> None:
        """Go on with these streams, in this order; the others are forgotten, and one that is named twice is copied."""

    def export(self, stream: int) -> StreamCache:
        """A copy of what a stream has read, for a later `Prefix`."""

    def count_read(self, stream: int) -> int:
        """The tokens that a stream holds."""


class SlotDecoder(StepDecoder, Protocol):
    """Streams that come and go: `prefill` and `keep` as above, and others `join` those that are there."""

    def join(self, prompts: Sequence[Sequence[int]], pad_id: int, capacities: Sequence[int]) -> Tensor:
        """Read prompts as further streams, behind the others, and return their last hidden states, [new, E]. Prompts
        that are the same are read once.

        capacities: the most tokens that each of them will hold. Raises ValueError where a layer does not hold all
        tokens (a sliding window).
        """

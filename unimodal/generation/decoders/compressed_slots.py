"""Streams that come and go and are read under methods of compression, each as it would be alone.

The methods' contexts are open for the calls of this decoder alone (a `contextvars.Context` of its own), so that other
rows of the same thread and model are not compressed. Further streams join where the methods remember nothing that
cannot be put side by side (`can_join`).

Shapes: S streams, P tokens of a step, E width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from contextvars import copy_context
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unimodal.compression import KeptTokens, Method, open_methods
from unimodal.compression.running.joining import can_join, join_rows, trim_padding
from unimodal.compression.running.slots import SlotLayer
from unimodal.generation.decoders.cache_size import count_bytes
from unimodal.generation.decoders.reference_decoder import ReferenceDecoder
from unimodal.generation.decoders.shared_prompts import find_unique
from unimodal.generation.decoders.step_decoder import CachedPrefix, Prompts
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CompressedSlots(ReferenceDecoder):
    """A `SlotDecoder` of a causal LM under compression. Call `close` behind the last call.

    joined: what was kept of the prompts that joined last. Raises ValueError for what a method refuses.
    """

    def __init__(self, model: PreTrainedModel, vocabulary: Vocabulary, methods: Sequence[Method]) -> None:
        super().__init__(model)
        self.methods = tuple(methods)
        self.joined: list[KeptTokens] = []
        self.num_streams = 0
        self._capacities: list[int] = []
        self._context, self._stack = copy_context(), ExitStack()
        opened = self._context.run(self._stack.enter_context, open_methods(methods, model, vocabulary))
        self._session = opened[0]

    def close(self) -> None:
        """Close the methods' contexts."""
        self._context.run(self._stack.close)

    @property
    def can_join(self) -> bool:
        """Whether further streams may join those that are here."""
        return not self.num_streams or can_join(self._layers)

    @property
    def _layers(self) -> list[SlotLayer]:
        return self.cache.layers

    @property
    def num_bytes_used(self) -> int:
        return sum(count_bytes(self.measure_layers(), capacity) for capacity in self._capacities)

    def count_needed(self, prompts: Prompts, capacities: Sequence[int]) -> int:
        """As if nothing were left out: how much it is, is known when the prompt is read."""
        return sum(count_bytes(self.measure_layers(), capacity) for capacity in capacities)

    def join(
        self,
        prompts: Prompts,
        pad_id: int,
        capacities: Sequence[int],
        prefixes: Sequence[CachedPrefix | None] = (),
    ) -> Tensor:
        """Read prompts as further streams; see `SlotDecoder`. Each is read whole: a method looks at all of it."""
        assert not prefixes
        unique, numbers = find_unique(prompts)
        fresh = ReferenceDecoder(self.model)
        hidden = self._context.run(fresh.prefill, unique, pad_id, max(capacities))
        self.joined = [self._session.rows[number] for number in numbers]
        if len(unique) < len(prompts):
            fresh.keep(numbers)
        if not self.num_streams:
            self.cache, self.pads, self.length, self.places = fresh.cache, fresh.pads, fresh.length, fresh.places
        else:
            length = max(self.length, fresh.length)
            join_rows(self._layers, fresh.cache.layers)
            self.pads = torch.cat([self.pads + length - self.length, fresh.pads + length - fresh.length])
            self.places = self.pads.new_zeros(len(self.pads), 0)  # of tokens that a mask of this decoder would see
            self.length = length
        self.num_streams += len(prompts)
        self._capacities += capacities
        return hidden[numbers]

    def step(
        self, ids: Tensor, offsets: Tensor | None = None, visible: Tensor | None = None, every: bool = False
    ) -> Tensor:
        return self._context.run(super().step, ids, offsets, visible, every)

    def keep(self, streams: Sequence[int]) -> None:
        self.num_streams = len(streams)
        self._capacities = [self._capacities[stream] for stream in streams]
        if streams:
            super().keep(streams)
            trim_padding(self._layers)
            spare = int(self.pads.min())
            self.pads, self.length = self.pads - spare, self.length - spare
            self.places = self.places[:, spare:]

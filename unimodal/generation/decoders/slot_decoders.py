"""Decoders whose streams come and go (continuous batching, Orca: Yu et al., OSDI 2022).

Shapes: S streams, C slots of the cache, K key/value heads, W head width, E width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.generation.decoders.cache_size import count_bytes
from unimodal.generation.decoders.cached_streams import CachedStreams
from unimodal.generation.decoders.lean_decoder import LeanDecoder
from unimodal.generation.decoders.lean_layers import LeanLayers
from unimodal.generation.decoders.reference_decoder import ReferenceDecoder
from unimodal.generation.decoders.shared_prompts import find_unique
from unimodal.generation.decoders.step_decoder import CachedPrefix, Prompts, SlotDecoder, StepDecoder, StreamCache
from unimodal.vocabulary.positions import Position

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LeanSlots(LeanDecoder):
    """A `SlotDecoder` over the layers of a lean or packed decoder; the protocol describes the methods."""

    def __init__(self, layers: LeanLayers, max_positions: int) -> None:
        super().__init__(layers)
        layers.refresh()
        self.cached = CachedStreams(layers)
        self.rotary = layers.make_rotary(max_positions)

    def join(
        self,
        prompts: Prompts,
        pad_id: int,
        capacities: Sequence[int],
        prefixes: Sequence[CachedPrefix | None] = (),
    ) -> Tensor:
        if self.layers.refresh():  # what was read by other weights is nobody's beginning
            self.forget_begun()
            for stream in self.streams:
                stream.prompt = ()
        return self._join(prompts, pad_id, capacities, prefixes)

    @property
    def num_bytes_used(self) -> int:
        return self.cached.num_bytes_used

    def count_needed(self, prompts: Prompts, capacities: Sequence[int]) -> int:
        distinct, numbers = find_unique(prompts)
        most = [max(c for c, n in zip(capacities, numbers, strict=True) if n == own) for own in range(len(distinct))]
        trees = self._plant_trees(distinct, self._find_beginnings(distinct, [None] * len(distinct)))
        blocks = self._count_blocks([stretch for tree in trees.values() for stretch in tree], most)
        copies = self._count_copies(distinct, numbers, capacities)
        return self.cached.weigh([sum(both) for both in zip(blocks, copies, strict=True)])

    def count_begun(self, prompt: Sequence[Position]) -> int:
        """How many tokens of a prompt are held already, by other rows or by `read_ahead`."""
        return self._find_beginnings([tuple(prompt)], [None])[0][1]

    def begin(self, prefix: CachedPrefix, prompt: Sequence[Position]) -> None:
        """Hold a beginning of a prompt that was read elsewhere, unless as much of it is held."""
        num = prefix.num_tokens
        if self.count_begun(prompt) < num:
            self.begun.append(self.cached.import_cache(prefix.cache, num, prompt[:num]))

    def read_ahead(self, prompt: Sequence[Position], pad_id: int, end: int) -> None:
        """Read the tokens of a prompt up to ``end`` where its row will find them."""
        [(source, num)] = self._find_beginnings([tuple(prompt)], [None])
        assert num < end < len(prompt) and not isinstance(source, StreamCache), (num, end, len(prompt))
        if source is None:
            stream = self.cached.add()
            self.begun.append(stream)
        elif source in self.begun and num == source.length:
            stream = source
        else:
            stream = self.cached.fork(source, num)
            self.begun.append(stream)
        self._read([stream], [prompt[num:end]], pad_id)
        stream.prompt = tuple(prompt[:end])

    def forget_begun(self) -> None:
        """Drop what was read ahead."""
        for stream in self.begun:
            self.cached.release(stream)
        self.begun = []


class ReferenceSlots(ReferenceDecoder):
    """A `SlotDecoder` through the model's own forward, for other architectures.

    Streams end at the same slot: a new stream is padded to the length of the others, or they to its length.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.length = 0
        self._capacities: list[int] = []  # of each stream

    @property
    def num_bytes_used(self) -> int:
        sizes = self.measure_layers() if self._capacities else []
        return len(self._capacities) * count_bytes(sizes, max(self._capacities, default=0))

    def count_needed(self, prompts: Prompts, capacities: Sequence[int]) -> int:
        longest = max(*capacities, *self._capacities) if self._capacities else max(capacities)
        total = (len(self._capacities) + len(prompts)) * count_bytes(self.measure_layers(), longest)
        return total - self.num_bytes_used  # all streams are as long as the longest

    def prefill(
        self, prompts: Prompts, pad_id: int, capacity: int, prefixes: Sequence[CachedPrefix | None] = ()
    ) -> Tensor:
        self._capacities = [capacity] * len(prompts)
        return super().prefill(prompts, pad_id, capacity, prefixes)

    def join(
        self,
        prompts: Prompts,
        pad_id: int,
        capacities: Sequence[int],
        prefixes: Sequence[CachedPrefix | None] = (),
    ) -> Tensor:
        from unimodal.generation.decoders.reference_cache import WindowLayer, check_whole

        fresh = ReferenceDecoder(self.model)
        unique, numbers = find_unique(prompts)
        self._capacities += capacities
        hidden = fresh.prefill(unique, pad_id, max(capacities), choose_prefixes(prefixes, numbers))[numbers]
        self.num_computed = fresh.num_computed
        if len(unique) < len(prompts):
            fresh.keep(numbers)
        for layer in fresh.cache.layers:
            check_whole(layer, "joined; answer one by one")
        if not self.length:
            self.cache, self.pads, self.length, self.places = fresh.cache, fresh.pads, fresh.length, fresh.places
            return hidden
        length = max(self.length, fresh.length)
        ours, theirs = length - self.length, length - fresh.length
        for layer, other in zip(self.cache.layers, fresh.cache.layers, strict=True):
            mine, its = ours, theirs
            if isinstance(layer, WindowLayer):  # both begin at the first slot that one of them still sees
                gone = min(layer.dropped + ours, other.dropped + theirs)
                mine, its = layer.dropped + ours - gone, other.dropped + theirs - gone
                layer.dropped = gone
            layer.keys = torch.cat([_pad_slots(layer.keys, mine), _pad_slots(other.keys, its)])
            layer.values = torch.cat([_pad_slots(layer.values, mine), _pad_slots(other.values, its)])
        self.pads = torch.cat([self.pads + ours, fresh.pads + theirs])
        self.places = torch.cat([F.pad(self.places, (ours, 0)), F.pad(fresh.places, (theirs, 0))])
        self.length = length
        return hidden

    def keep(self, streams: Sequence[int]) -> None:
        from unimodal.generation.decoders.reference_cache import make_cache

        self._capacities = [self._capacities[stream] for stream in streams]
        if not streams:
            self.cache, self.length = make_cache(self.backbone.config, 0), 0
            return
        super().keep(streams)


def choose_prefixes(prefixes: Sequence[CachedPrefix | None], numbers: Sequence[int]) -> Sequence[CachedPrefix | None]:
    """The prefixes of distinct prompts, of those of all prompts; numbers: as of `find_unique`."""
    return [prefixes[numbers.index(number)] for number in range(max(numbers) + 1)] if prefixes else ()


def _pad_slots(held: Tensor, num: int) -> Tensor:
    """Keys or values [S, K, C, W] with ``num`` empty slots before them."""
    return F.pad(held, (0, 0, num, 0))


def make_twin(decoder: StepDecoder) -> StepDecoder:
    """A decoder of the same weights with streams of its own, for work between the steps of other streams.

    Raises ValueError for a kind of decoder that has no twin.
    """
    if isinstance(decoder, LeanDecoder):
        return LeanDecoder(decoder.layers)
    if isinstance(decoder, ReferenceDecoder):
        return ReferenceDecoder(decoder.model)
    raise ValueError(f"{type(decoder).__name__} cannot be made twice; take another decoder")


def make_slots(decoder: StepDecoder, max_positions: int) -> SlotDecoder:
    """A `SlotDecoder` over the weights of this decoder. Raises ValueError for a kind that has none."""
    if isinstance(decoder, LeanDecoder):
        return LeanSlots(decoder.layers, max_positions)
    if isinstance(decoder, ReferenceDecoder):
        return ReferenceSlots(decoder.model)
    raise ValueError(f"{type(decoder).__name__} has no form whose streams come and go; take another decoder")

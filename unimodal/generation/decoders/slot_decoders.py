"""Decoders whose streams come and go: every stream has a row of the cache and a length of its own.

In `lean_decoder.py` streams start together and all end at the same slot. Here each begins at slot 0 of its own row and
has its own length. A new stream is read apart and copied into the next free row. When one leaves, the last row is
copied into its place; leaving costs no other copy. This is the continuous batching of Orca (Yu et al., OSDI 2022).
Cached keys are rotated already, so nothing is computed again.

Shapes: S streams, P tokens of a step, V latest tokens of a stream, C capacity of the cache, K key/value heads, D head
width, E width, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.generation.decoders.lean_decoder import LeanDecoder
from unimodal.generation.decoders.lean_layers import LeanLayers
from unimodal.generation.decoders.reference_decoder import ReferenceDecoder
from unimodal.generation.decoders.step_decoder import CachedPrefix, Prompts, SlotDecoder, StepDecoder, StreamCache
from unimodal.generation.decoders.step_view import StepView
from unimodal.vocabulary.positions import Position

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FIRST_STREAMS, _GRAIN = 8, 128


class LeanSlots:
    """A `SlotDecoder` over the layers of a lean or packed decoder; the protocol describes the methods."""

    num_computed: int

    def __init__(self, layers: LeanLayers, max_positions: int) -> None:
        layers.refresh()
        self.layers, self.max_positions = layers, max_positions
        self.rotary = layers.make_rotary(max_positions)
        self.cache = layers.make_cache(0, 0)  # [L, 2, rows, K, C, D]
        self.places: Tensor | None = None  # int64 [rows, C], the position of each slot; None for a base without windows
        if layers.base.has_windows:
            self.places = torch.zeros(0, 0, dtype=torch.int64, device=layers.device)
        self.slot_of: list[int] = []  # [S] the row of the cache of each stream
        self.lengths: list[int] = []  # tokens in each row

    def prefill(
        self, prompts: Prompts, pad_id: int, capacity: int, prefixes: Sequence[CachedPrefix | None] = ()
    ) -> Tensor:
        self.keep([])
        return self._join(prompts, pad_id, capacity, prefixes, range(len(prompts)))

    def join(
        self,
        prompts: Prompts,
        pad_id: int,
        capacities: Sequence[int],
        prefixes: Sequence[CachedPrefix | None] = (),
    ) -> Tensor:
        unique, numbers = find_unique(prompts)
        return self._join(unique, pad_id, max(capacities), choose_prefixes(prefixes, numbers), numbers)

    def _join(
        self,
        prompts: Prompts,
        pad_id: int,
        capacity: int,
        prefixes: Sequence[CachedPrefix | None],
        numbers: Sequence[int],
    ) -> Tensor:
        """Read prompts and add a stream for each of ``numbers``, indices of prompts; return their states [new, E]."""
        reader = LeanDecoder(self.layers)  # it reads the new prompts into a cache of its own
        hidden = reader.prefill(prompts, pad_id, max(map(len, prompts)), prefixes)
        self.num_computed = reader.num_computed
        self._reserve(len(self.lengths) + len(numbers), capacity)
        for number in numbers:
            slot, length = len(self.lengths), len(prompts[number])
            first = reader.length - length
            for own, held in zip(self.cache.parts, reader.cache.parts, strict=True):
                own[:, :, slot, :, :length] = held[:, :, number, :, first : reader.length]
            if self.places is not None:
                self.places[slot, :length] = torch.arange(length, device=self.places.device)
            self.slot_of.append(slot)
            self.lengths.append(length)
        return hidden[list(numbers)]

    def step(
        self, ids: Tensor, offsets: Tensor | None = None, visible: Tensor | None = None, every: bool = False
    ) -> Tensor:
        num_streams, num_new = ids.shape[:2]
        device = ids.device
        assert num_streams == len(self.slot_of), (num_streams, self.slot_of)
        moved = self.slot_of != list(range(num_streams))
        if moved:  # by rows of the cache, where a single index reads them all
            slot_of = torch.tensor(self.slot_of, device=device)
            ids, offsets, visible = (_order(x, slot_of) for x in (ids, offsets, visible))
        lengths = torch.tensor(self.lengths, device=device)[:, None]  # [S, 1]
        places = lengths + torch.arange(num_new, device=device)  # [S, P]
        positions = places if offsets is None else (lengths + offsets).clamp_(min=0)
        end = max(self.lengths) + num_new
        assert end <= self.cache.shape[4], (end, self.cache.shape)
        seen = None
        if visible is not None:
            slots = torch.arange(end, device=device)
            seen = _place_visible(visible, lengths + num_new, slots) & (slots < lengths[..., None] + num_new)
        view = StepView(self.cache, num_streams, num_new, positions, places, end, seen=seen)
        if self.places is not None:
            self.places[torch.arange(num_streams, device=device)[:, None], places] = positions
            view.places = self.places[:num_streams, :end]
        x = self.layers.run(self.layers.embed(ids), self.rotary, view)  # [S, P, E]
        self.lengths = [length + num_new for length in self.lengths]
        x = self.layers.apply_norm(x if every else x[:, -1])
        return x[slot_of] if moved else x

    def commit(self, kept: Sequence[Sequence[int]], num_new: int) -> None:
        for slot, numbers in zip(self.slot_of, kept, strict=True):
            begin = self.lengths[slot] - num_new
            self.lengths[slot] = begin + len(numbers)
            if list(numbers) != list(range(len(numbers))):
                index = begin + torch.tensor(numbers, dtype=torch.int64, device=self.layers.device)
                for part in self.cache.parts:
                    held = part[:, :, slot]  # [L, 2, K, C, D]
                    held[:, :, :, begin : begin + len(numbers)] = held.index_select(3, index)
                if self.places is not None:
                    self.places[slot, begin : begin + len(numbers)] = self.places[slot, index]

    def keep(self, streams: Sequence[int]) -> None:
        slots = [self.slot_of[stream] for stream in streams]
        self._reserve(len(slots), 0)
        free = sorted(set(range(len(slots))) - set(slots))
        lengths = [self.lengths[slot] if slot < len(self.lengths) else 0 for slot in range(len(slots))]
        taken: set[int] = set()
        for number, slot in enumerate(slots):
            if slot >= len(slots) or slot in taken:
                hole, length = free.pop(), self.lengths[slot]
                for part in self.cache.parts:
                    part[:, :, hole, :, :length] = part[:, :, slot, :, :length]
                if self.places is not None:
                    self.places[hole] = self.places[slot]
                lengths[hole] = length
                slots[number] = hole
            taken.add(slot)
        self.slot_of, self.lengths = slots, lengths

    def export(self, stream: int) -> StreamCache:
        slot = self.slot_of[stream]
        return StreamCache([part[:, :, slot, :, : self.lengths[slot]].clone() for part in self.cache.parts])

    def count_read(self, stream: int) -> int:
        return self.lengths[self.slot_of[stream]]

    def _reserve(self, streams: int, capacity: int) -> None:
        """Make the cache large enough. It grows by doubling and never shrinks, so a server's memory settles."""
        have_streams, have_capacity = self.cache.shape[2], self.cache.shape[4]
        if streams <= have_streams and capacity <= have_capacity:
            return
        if streams > have_streams:
            have_streams = max(streams, 2 * have_streams, _FIRST_STREAMS)
        if capacity > have_capacity:
            have_capacity = min(self.max_positions, max(-(-capacity // _GRAIN) * _GRAIN, have_capacity))
        grown = self.layers.make_cache(have_streams, have_capacity)
        num, end = len(self.lengths), max(self.lengths, default=0)
        for new, held in zip(grown.parts, self.cache.parts, strict=True):
            new[:, :, :num, :, :end] = held[:, :, :num, :, :end]
        self.cache = grown
        if self.places is not None:
            held = self.places
            self.places = held.new_zeros(have_streams, have_capacity)
            self.places[:num, :end] = held[:num, :end]


def _order(x: Tensor | None, slot_of: Tensor) -> Tensor | None:
    """Put x [S, …] from the order of streams into that of cache rows; [1, …] and None stay as they are."""
    return x if x is None or len(x) != len(slot_of) else torch.empty_like(x).index_copy_(0, slot_of, x)


def _place_visible(visible: Tensor, ends: Tensor, slots: Tensor) -> Tensor:
    """Turn a mask over the latest V tokens of each stream into one over its slots, bool [S, P, slots].

    visible: bool [S or 1, P, V]. ends: int64 [S, 1], the number of tokens of each stream. Earlier slots are all seen.
    """
    number = slots - (ends - visible.shape[2])  # [S, slots] among the V
    inside = number.clamp(0, visible.shape[2] - 1)[:, None].expand(-1, visible.shape[1], -1)
    seen = visible.expand(len(ends), -1, -1).gather(2, inside)
    return seen | (number < 0)[:, None]


class ReferenceSlots(ReferenceDecoder):
    """A `SlotDecoder` through the model's own forward, for other architectures.

    Streams end at the same slot: a new stream is padded to the length of the others, or they to its length.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.length = 0

    def join(
        self,
        prompts: Prompts,
        pad_id: int,
        capacities: Sequence[int],
        prefixes: Sequence[CachedPrefix | None] = (),
    ) -> Tensor:
        from unimodal.generation.decoders.reference_cache import check_whole

        fresh = ReferenceDecoder(self.model)
        unique, numbers = find_unique(prompts)
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
            layer.keys = torch.cat([_pad_slots(layer.keys, ours), _pad_slots(other.keys, theirs)])
            layer.values = torch.cat([_pad_slots(layer.values, ours), _pad_slots(other.values, theirs)])
        self.pads = torch.cat([self.pads + ours, fresh.pads + theirs])
        self.places = torch.cat([F.pad(self.places, (ours, 0)), F.pad(fresh.places, (theirs, 0))])
        self.length = length
        return hidden

    def keep(self, streams: Sequence[int]) -> None:
        from unimodal.generation.decoders.reference_cache import make_cache

        if not streams:
            self.cache, self.length = make_cache(self.backbone.config, 0), 0
            return
        super().keep(streams)
        spare = int(self.pads.min())
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[:, :, spare:], layer.values[:, :, spare:]
        self.pads, self.places = self.pads - spare, self.places[:, spare:]
        self.length -= spare


def find_unique(prompts: Prompts) -> tuple[list[tuple[Position, ...]], list[int]]:
    """The distinct prompts, and for each prompt its index among them: equal prompts are read once."""
    found: dict[tuple[Position, ...], int] = {}
    numbers = [found.setdefault(tuple(prompt), len(found)) for prompt in prompts]
    return list(found), numbers


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

"""Decoders whose streams come and go: every stream has a place and a length of its own.

A decoder of `lean_decoder.py` keeps its streams flush at one last slot, since they start together. Here each begins at
slot 0 of its own row of the cache and is as long as it is: a newcomer is read beside the others and copied into the
next free row, and a row that falls free is filled with the last one, the only copy that leaving costs. This is
continuous batching as of Orca (Yu et al., OSDI 2022). Keys carry their own rotation, so nothing is computed again.

Shapes: S streams, P tokens of a step, C capacity of the cache, K key/value heads, D head width, E width, L layers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.generation.decoders.lean_decoder import LeanDecoder, rms_norm
from unimodal.generation.decoders.packed_decoder import PackedDecoder
from unimodal.generation.decoders.reference_decoder import ReferenceDecoder

_FIRST_STREAMS, _GRAIN = 8, 128


class _Slots(LeanDecoder):
    """What the decoders below share. ``join``, ``step`` and ``keep`` number the streams in the order they came."""

    def __init__(self, decoder: Any, max_positions: int) -> None:
        if isinstance(decoder, PackedDecoder):
            decoder.refresh()
        self.__dict__.update(decoder.__dict__)  # the weights, and their packed copies, are shared
        self.reader = copy.copy(decoder)  # reads prompts, into a cache of its own
        norm = self.backbone.norm.weight
        cos, sin = self.backbone.rotary_emb(norm, torch.arange(max_positions, device=norm.device)[None])  # [1, C, D]
        half = self.width // 2
        self.cos, self.sin = cos[0], torch.cat([-sin[0, :, :half], sin[0, :, half:]], -1)
        self.max_positions = max_positions
        self._turns: Tensor | None = None
        self.cache = norm.new_zeros((len(self.layers), 2, 0, self.num_kv_heads, 0, self.width))
        self.slot_of: list[int] = []  # [S] the row of the cache of each stream
        self.lengths: list[int] = []  # tokens in each row

    def join(self, prompts: Sequence[Sequence[int]], pad_id: int, spans: Sequence[int]) -> Tensor:
        """Read prompts as further streams and return their last hidden states, [new, E]; ``spans``: tokens that each
        stream will hold at most."""
        hidden = self.reader.start(prompts, pad_id, max(map(len, prompts)))
        self._reserve(len(self.lengths) + len(prompts), max(spans))
        for number, prompt in enumerate(prompts):
            slot = len(self.lengths)
            first = self.reader.length - len(prompt)
            self.cache[:, :, slot, :, : len(prompt)] = self.reader.cache[:, :, number, :, first : self.reader.length]
            self.slot_of.append(slot)
            self.lengths.append(len(prompt))
        del self.reader.cache
        return hidden

    def _reserve(self, streams: int, span: int) -> None:
        """Make the cache large enough. It grows by doubling and stays: a server's memory settles."""
        have_streams, have_span = self.cache.shape[2], self.cache.shape[4]
        if streams <= have_streams and span <= have_span:
            return
        if streams > have_streams:
            have_streams = max(streams, 2 * have_streams, _FIRST_STREAMS)
        if span > have_span:
            have_span = min(self.max_positions, max(-(-span // _GRAIN) * _GRAIN, have_span))
        shape = (*self.cache.shape[:2], have_streams, self.num_kv_heads, have_span, self.width)
        grown = self.cache.new_zeros(shape)  # what a mask hides must still be finite
        num, end = len(self.lengths), max(self.lengths, default=0)
        grown[:, :, :num, :, :end] = self.cache[:, :, :num, :, :end]
        self.cache = grown

    def keep(self, streams: Sequence[int]) -> None:
        """Go on with these streams only, numbered in this order."""
        slots = [self.slot_of[stream] for stream in streams]
        free = sorted(set(range(len(slots))) - set(slots))
        for number, slot in enumerate(slots):
            if slot >= len(slots):
                hole, length = free.pop(), self.lengths[slot]
                self.cache[:, :, hole, :, :length] = self.cache[:, :, slot, :, :length]
                self.lengths[hole] = length
                slots[number] = hole
        self.slot_of = slots
        del self.lengths[len(slots) :]

    def step(
        self, ids: Tensor, offsets: Tensor | None = None, visible: Tensor | None = None, every: bool = False
    ) -> Tensor:
        """Append ids [S, P] to every stream and return the last hidden states [S, E]."""
        assert offsets is None and visible is None and not every and len(ids) == len(self.slot_of)
        num_streams, num_new = ids.shape
        device = ids.device
        moved = self.slot_of != list(range(num_streams))
        if moved:
            slot_of = torch.tensor(self.slot_of, device=device)
            ids = torch.empty_like(ids).index_copy_(0, slot_of, ids)
        positions = torch.tensor(self.lengths, device=device)[:, None] + torch.arange(num_new, device=device)  # [S, P]
        end = max(self.lengths) + num_new
        assert end <= self.cache.shape[4], (end, self.cache.shape)
        hidden = torch.arange(end, device=device) > positions[..., None]  # [S, P, end]
        bias = torch.zeros(hidden.shape, device=device, dtype=self.cache.dtype).masked_fill_(hidden, -torch.inf)
        self._places = torch.arange(num_streams, device=device)[:, None], positions
        x = self._layers(self.embed(ids), positions, 0, end, bias[:, None])[:, -1]  # [S, E]
        self.lengths = [length + num_new for length in self.lengths]
        x = rms_norm(self.backbone.norm, x)
        return x[slot_of] if moved else x

    def _written(self, cache: Tensor, k: Tensor, v: Tensor, begin: int, end: int) -> Tensor:
        streams, places = self._places
        cache[0][streams, :, places] = k.transpose(1, 2)  # [S, P, K, D]
        cache[1][streams, :, places] = v.transpose(1, 2)
        return cache[:, : len(streams), :, :end]


class LeanSlots(_Slots):
    """Over the model's own weights."""


class PackedSlots(_Slots, PackedDecoder):
    """Over the packed copies of the weights."""


class ReferenceSlots(ReferenceDecoder):
    """Through the model's own forward, for other architectures: streams end flush, so a newcomer that is shorter or
    longer is padded to the others, or they to it."""

    def __init__(self, decoder: ReferenceDecoder) -> None:
        self.__dict__.update(decoder.__dict__)
        self.cache: Any = None

    def join(self, prompts: Sequence[Sequence[int]], pad_id: int, spans: Sequence[int]) -> Tensor:
        from unimodal.generation.decoders.reference_cache import is_whole

        fresh = copy.copy(self)
        hidden = fresh.start(prompts, pad_id, max(spans))
        for layer in fresh.cache.layers:
            if not is_whole(layer):
                raise ValueError(f"a cache layer of type {type(layer).__name__} cannot be joined; answer one by one")
        if self.cache is None:
            self.cache, self.pads, self.length = fresh.cache, fresh.pads, fresh.length
            return hidden
        length = max(self.length, fresh.length)
        ours, theirs = length - self.length, length - fresh.length
        for layer, other in zip(self.cache.layers, fresh.cache.layers, strict=True):
            for name in ("keys", "values"):
                both = [
                    F.pad(getattr(held, name), (0, 0, pad, 0)) for held, pad in ((layer, ours), (other, theirs))
                ]  # [S, K, C, W]
                setattr(layer, name, torch.cat(both))
        self.pads = torch.cat([self.pads + ours, fresh.pads + theirs])
        self.length = length
        return hidden

    def keep(self, streams: Sequence[int]) -> None:
        if not streams:
            self.cache = None
            return
        super().keep(streams)
        spare = int(self.pads.min())
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[:, :, spare:], layer.values[:, :, spare:]
        self.pads = self.pads - spare
        self.length -= spare


def slots_for(decoder: Any, max_positions: int) -> Any:
    """The decoder of this kind whose streams come and go."""
    if isinstance(decoder, PackedDecoder):
        return PackedSlots(decoder, max_positions)
    if isinstance(decoder, LeanDecoder):
        return LeanSlots(decoder, max_positions)
    return ReferenceSlots(decoder)

"""The lean step: streams that start together, over `LeanLayers` and one preallocated cache.

The cache is one tensor (two in 8 bits); the rotary table and the padding mask are made once for all steps. Tests hold
it equal to the stock forward to 1e-5.

Shapes: S streams, P tokens of a step, C capacity of the cache, K key/value heads, D head width, E width, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unimodal.generation.decoders.flush_streams import (
    build_visible_mask,
    close_gap,
    count_unread,
    pad_left,
    plan_moves,
)
from unimodal.generation.decoders.kv_cache import KeyValueCache
from unimodal.generation.decoders.lean_layers import LeanLayers, RotaryTables
from unimodal.generation.decoders.step_decoder import CachedPrefix, Prompts, StreamCache
from unimodal.generation.decoders.step_view import StepView

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Prompts are read in pieces of so many tokens where their mask [S, P, N] would else be larger than the cache.
_PIECE = 512


class LeanDecoder:
    """A `StepDecoder` for stock bases; the protocol describes the methods. `PackedDecoder` has other layers.

    kv: the kind of the cache, of `CACHES`.
    """

    cache: KeyValueCache  # [L, 2, S, K, C, D]; read only up to `length`
    length: int  # slots in use
    pads: Tensor  # int64 [S], slots of left padding
    padded: bool  # whether there are any
    bias: Tensor | None  # [S, 1, 1, C] added to attention scores: -inf on the left padding; None without padding
    places: Tensor | None  # int64 [S, C], the position of each slot; None for a base without windows
    rotary: RotaryTables
    num_computed: int

    def __init__(self, model: PreTrainedModel | LeanLayers, kv: str = "model") -> None:
        self.layers = model if isinstance(model, LeanLayers) else LeanLayers(model, kv)

    def prefill(
        self, prompts: Prompts, pad_id: int, capacity: int, prefixes: Sequence[CachedPrefix | None] = ()
    ) -> Tensor:
        self.layers.refresh()
        ids, self.pads = pad_left(prompts, pad_id, self.layers.device)
        self.cache = self.layers.make_cache(len(prompts), capacity)
        self.length, self.places = 0, None
        self._set_padding()
        self.rotary = self.layers.make_rotary(capacity)
        self.num_computed = count_unread(prompts, prefixes)
        first = ids.shape[1] - self.num_computed
        for stream, prompt in enumerate(prompts):
            pad = ids.shape[1] - len(prompt)
            if pad < first:  # then the prefix has at least these tokens
                prefix = prefixes[stream]
                assert prefix is not None
                for part, held in zip(self.cache.parts, prefix.cache.parts, strict=True):
                    part[:, :, stream, :, pad:first] = held[..., : first - pad, :]
            for part in self.cache.parts:
                part[:, :, stream, :, : min(pad, first)] = 0  # what padding leaves unwritten must be finite
        self.length = first
        masked = self.padded or self.layers.base.has_windows
        piece = _PIECE if masked else self.num_computed
        for begin in range(first, ids.shape[1], piece):
            hidden = self.step(ids[:, begin : begin + piece])
        return hidden

    def step(
        self, ids: Tensor, offsets: Tensor | None = None, visible: Tensor | None = None, every: bool = False
    ) -> Tensor:
        num_streams, num_new = ids.shape[:2]
        begin, end = self.length, self.length + num_new
        if end > self.cache.shape[4]:
            self._grow(end + end // 4)
        positions: slice | Tensor
        if self.bias is None and offsets is None:
            positions = slice(begin, end)
        else:
            if offsets is None:
                offsets = torch.arange(num_new, device=ids.device)[None]
            positions = (begin - self.pads[:, None] + offsets).clamp_(min=0)  # [S, P]
        view = StepView(
            self.cache,
            num_streams,
            num_new,
            positions,
            slice(begin, end),
            end,
            lows=self.pads if self.padded else None,
            seen=None if visible is None else build_visible_mask(visible, self.pads, begin, end),
            padding=self.bias,
        )
        if self.places is not None:
            self.places[:, begin:end] = view.spread_positions()
            view.places = self.places[:, :end]
        x = self.layers.run(self.layers.embed(ids), self.rotary, view)  # [S, P, E]
        self.length = end
        return self.layers.apply_norm(x if every else x[:, -1])

    def commit(self, kept: Sequence[Sequence[int]], num_new: int) -> None:
        # A stream that keeps fewer tokens than another moves in the cache; keys carry their own rotation.
        before = self.pads.tolist()
        moves, self.length = plan_moves(before, kept, self.length, num_new)
        for stream, (start, slots) in enumerate((move.pad, move.slots) for move in moves):
            if start == before[stream] and slots == list(range(start, start + len(slots))):
                continue
            fresh = len(slots) if start != before[stream] else len(kept[stream])  # those that stand elsewhere now
            index = torch.tensor(slots[len(slots) - fresh :], dtype=torch.int64, device=self.pads.device)
            for part in self.cache.parts:
                held = part[:, :, stream]  # [L, 2, K, C, D]
                held[:, :, :, self.length - fresh : self.length] = held.index_select(3, index)
                held[:, :, :, :start] = 0
            if self.places is not None:
                self.places[stream, self.length - fresh : self.length] = self.places[stream, index]
        after = [move.pad for move in moves]
        if after != before:
            self.pads = torch.tensor(after, device=self.pads.device)
            self._set_padding()

    def keep(self, streams: Sequence[int]) -> None:
        index = torch.tensor(list(streams), dtype=torch.int64, device=self.pads.device)
        self.pads, gap = close_gap(self.pads[index])
        kept = self.cache.resize(len(index), self.cache.shape[4])
        for new, held in zip(kept.parts, self.cache.parts, strict=True):
            new[..., : self.length - gap, :] = held[..., gap : self.length, :].index_select(2, index)
        if self.places is not None:
            self.places = torch.nn.functional.pad(self.places[index, gap:], (0, gap))
        self.cache = kept
        self.length -= gap
        self._set_padding()

    def export(self, stream: int) -> StreamCache:
        begin = int(self.pads[stream])
        return StreamCache([part[:, :, stream, :, begin : self.length].clone() for part in self.cache.parts])

    def count_read(self, stream: int) -> int:
        return self.length - int(self.pads[stream])

    def _grow(self, capacity: int) -> None:
        """Make room for streams longer than the capacity given to `prefill`; this copies the cache."""
        cache = self.layers.make_cache(len(self.pads), capacity)
        for new, held in zip(cache.parts, self.cache.parts, strict=True):
            new[..., : self.length, :] = held[..., : self.length, :]
        self.cache, self.rotary = cache, self.layers.make_rotary(capacity)
        self._set_padding()

    def _set_padding(self) -> None:
        capacity, device = self.cache.shape[4], self.pads.device
        self.padded = bool(self.pads.any())
        self.bias = None
        if self.padded:
            padding = torch.arange(capacity, device=device) < self.pads[:, None]
            bias = torch.zeros(padding.shape, device=device, dtype=self.cache.dtype)
            self.bias = bias.masked_fill_(padding, -torch.inf)[:, None, None]
        if self.layers.base.has_windows:
            held = self.places
            self.places = (torch.arange(capacity, device=device) - self.pads[:, None]).clamp_(min=0)
            if held is not None:
                self.places[:, : self.length] = held[:, : self.length]

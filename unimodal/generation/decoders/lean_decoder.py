"""The lean step: streams that start together, over `LlamaLayers` and one preallocated cache.

The cache is one tensor; the rotary table and the padding mask are made once for all steps. Tests hold it equal to the
stock forward to 1e-5.

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
from unimodal.generation.decoders.llama_layers import LlamaLayers, RotaryTable
from unimodal.generation.decoders.step_decoder import CachedPrefix, Prompts, StreamCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Padded prompts are read in pieces of so many tokens, or their mask [S, P, N] would be larger than the cache.
_PIECE = 512


class LeanDecoder:
    """A `StepDecoder` for stock Llama models; the protocol describes the methods. `PackedDecoder` has other layers."""

    cache: Tensor  # [L, 2, S, K, C, D]; read only up to `length`
    length: int  # slots in use
    pads: Tensor  # int64 [S], slots of left padding
    padded: bool  # whether there are any
    bias: Tensor | None  # [S, 1, 1, C] added to attention scores: -inf on the left padding; None without padding
    rotary: RotaryTable
    num_computed: int

    def __init__(self, model: PreTrainedModel | LlamaLayers) -> None:
        self.layers = model if isinstance(model, LlamaLayers) else LlamaLayers(model)

    def prefill(
        self, prompts: Prompts, pad_id: int, capacity: int, prefixes: Sequence[CachedPrefix | None] = ()
    ) -> Tensor:
        self.layers.refresh()
        ids, self.pads = pad_left(prompts, pad_id, self.layers.device)
        self.cache = self.layers.make_cache(len(prompts), capacity)
        self.length = 0
        self._set_padding()
        self.rotary = self.layers.make_rotary(capacity)
        self.num_computed = count_unread(prompts, prefixes)
        first = ids.shape[1] - self.num_computed
        for stream, prompt in enumerate(prompts):
            pad = ids.shape[1] - len(prompt)
            if pad < first:  # then the prefix has at least these tokens
                prefix = prefixes[stream]
                assert prefix is not None
                for number, (keys, values) in enumerate(prefix.cache.layers):
                    self.cache[number, 0, stream, :, pad:first] = keys[:, : first - pad]
                    self.cache[number, 1, stream, :, pad:first] = values[:, : first - pad]
            self.cache[:, :, stream, :, : min(pad, first)] = 0  # what padding leaves unwritten must be finite
        self.length = first
        piece = _PIECE if self.padded else self.num_computed
        for begin in range(first, ids.shape[1], piece):
            hidden = self.step(ids[:, begin : begin + piece])
        return hidden

    def step(
        self, ids: Tensor, offsets: Tensor | None = None, visible: Tensor | None = None, every: bool = False
    ) -> Tensor:
        num_new = ids.shape[1]
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
        caches = self.cache.unbind()  # of each layer, [2, S, K, C, D]

        def write(number: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            cache = caches[number]
            cache[0, :, :, begin:end] = k
            cache[1, :, :, begin:end] = v
            held = cache[..., :end, :]
            return held[0], held[1]

        x = self.layers.embed(ids)
        x = self.layers.run(x, self.rotary, positions, write, self._make_bias(begin, end, visible))  # [S, P, E]
        self.length = end
        return self.layers.apply_norm(x if every else x[:, -1])

    def commit(self, kept: Sequence[Sequence[int]], num_new: int) -> None:
        # A stream that keeps fewer tokens than another moves in the cache; keys carry their own rotation.
        before = self.pads.tolist()
        moves, self.length = plan_moves(before, kept, self.length, num_new)
        for stream, (start, slots) in enumerate((move.pad, move.slots) for move in moves):
            if start == before[stream] and slots == list(range(start, start + len(slots))):
                continue
            held = self.cache[:, :, stream]  # [L, 2, K, C, D]
            fresh = len(slots) if start != before[stream] else len(kept[stream])  # those that stand elsewhere now
            index = torch.tensor(slots[len(slots) - fresh :], dtype=torch.int64, device=self.pads.device)
            held[:, :, :, self.length - fresh : self.length] = held.index_select(3, index)
            held[:, :, :, :start] = 0
        after = [move.pad for move in moves]
        if after != before:
            self.pads = torch.tensor(after, device=self.pads.device)
            self._set_padding()

    def keep(self, streams: Sequence[int]) -> None:
        index = torch.tensor(list(streams), dtype=torch.int64, device=self.pads.device)
        self.pads, gap = close_gap(self.pads[index])
        kept = self.cache.new_empty((*self.cache.shape[:2], len(index), *self.cache.shape[3:]))
        kept[..., : self.length - gap, :] = self.cache[..., gap : self.length, :].index_select(2, index)
        self.cache = kept
        self.length -= gap
        self._set_padding()

    def export(self, stream: int) -> StreamCache:
        held = self.cache[:, :, stream, :, int(self.pads[stream]) : self.length].clone()  # [L, 2, K, N, D]
        return StreamCache([(layer[0], layer[1]) for layer in held])

    def count_read(self, stream: int) -> int:
        return self.length - int(self.pads[stream])

    def _grow(self, capacity: int) -> None:
        """Make room for streams longer than the capacity given to `prefill`; this copies the cache."""
        cache = self.layers.make_cache(len(self.pads), capacity)
        cache[..., : self.length, :] = self.cache[..., : self.length, :]
        self.cache, self.rotary = cache, self.layers.make_rotary(capacity)
        self._set_padding()

    def _set_padding(self) -> None:
        self.padded = bool(self.pads.any())
        self.bias = None
        if self.padded:
            padding = torch.arange(self.cache.shape[4], device=self.cache.device) < self.pads[:, None]
            bias = torch.zeros(padding.shape, device=self.cache.device, dtype=self.cache.dtype)
            self.bias = bias.masked_fill_(padding, -torch.inf)[:, None, None]

    def _make_bias(self, begin: int, end: int, visible: Tensor | None) -> Tensor | None:
        """The mask added to scores of tokens begin..end over keys 0..end: [S or 1, 1, P or 1, end]; None is causal."""
        if visible is None and end - begin == 1:
            return None if self.bias is None else self.bias[..., :end]
        if visible is None and self.bias is None and begin == 0:
            return None  # plain causal: the kernel's own triangle
        if visible is None and self.bias is None:
            keys = torch.arange(end, device=self.cache.device)
            seen = (keys <= keys[begin:, None])[None]
        else:
            seen = build_visible_mask(visible, self.pads, begin, end)
        bias = torch.zeros(seen.shape, device=self.cache.device, dtype=self.cache.dtype)
        return bias.masked_fill_(~seen, -torch.inf)[:, None]

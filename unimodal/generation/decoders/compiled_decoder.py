"""The lean step with fixed shapes, compiled: for GPUs, on which a small step is mostly kernel launches.

The prompt is read eagerly, since its length always differs. A step of one token then has fixed shapes: it attends over
the whole capacity, with unused slots masked, and the slot that it writes is a tensor on the device. So `torch.compile`
compiles it once for a number of streams and a capacity (rounded up to a whole block), and its mode ``reduce-overhead``
replays it as a CUDA graph. On a processor, compiling takes half a minute and gains nothing, so it must be asked for
there. Streams share no blocks, and layers with windows hold all tokens: the slots of a stream lie one behind the other.

Shapes: S streams, T slots, C capacity of a stream, H query heads, K key/value heads, D head width, E width, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unimodal.generation.decoders.cached_streams import CachedStreams
from unimodal.generation.decoders.lean_decoder import LeanDecoder
from unimodal.generation.decoders.lean_layers import LeanLayers, RotaryTable
from unimodal.generation.decoders.paged_cache import BLOCK
from unimodal.generation.decoders.step_decoder import CachedPrefix, Prompts
from unimodal.generation.decoders.step_view import StepView

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CompiledDecoder(LeanDecoder):
    """A `LeanDecoder` whose steps of one token run a compiled function of fixed shapes.

    backend, mode: arguments of `torch.compile`; backend None runs the same function uncompiled.
    """

    shares = False
    _mask: Tensor | None = None  # [S, 1, 1, C] added to attention scores; None while a prompt is read
    _slots: Tensor  # int64 [S], the slot of each stream that its next token takes

    def __init__(
        self, model: PreTrainedModel, backend: str | Callable | None = "inductor", mode: str | None = None
    ) -> None:
        super().__init__(LeanLayers(model, rings=False))
        if mode is None and backend == "inductor" and self.layers.device.type == "cuda":
            mode = "reduce-overhead"
        self.compiled = backend is not None
        self._step: Callable[..., Tensor] = self._step_once
        if backend is not None:
            self._step = torch.compile(self._step_once, fullgraph=True, dynamic=False, backend=backend, mode=mode)

    def prefill(
        self, prompts: Prompts, pad_id: int, capacity: int, prefixes: Sequence[CachedPrefix | None] = ()
    ) -> Tensor:
        self._mask = None
        hidden = super().prefill(prompts, pad_id, -(-capacity // BLOCK) * BLOCK, prefixes)
        self._fix_shapes()
        return hidden

    def keep(self, streams: Sequence[int]) -> None:
        super().keep(streams)
        self._fix_shapes()

    def commit(self, kept: Sequence[Sequence[int]], num_new: int) -> None:
        super().commit(kept, num_new)
        self._fix_shapes()

    def step(
        self, ids: Tensor, offsets: Tensor | None = None, visible: Tensor | None = None, every: bool = False
    ) -> Tensor:
        single = ids.shape[1] == 1 and offsets is None and visible is None
        if not single or self._mask is None or max(stream.length for stream in self.streams) == self._mask.shape[3]:
            hidden = super().step(ids, offsets, visible, every)
            if self._mask is not None:
                self._fix_shapes()
            return hidden
        tables = [(table.cos, table.sin) for table in self.rotary]
        held = self.cached.caches[0].cache.data
        hidden = self._step(ids, self._slots, self._mask, tables, held)
        self._slots = self._slots + 1
        for stream in self.streams:
            stream.length += 1
        if self.compiled and hidden.is_cuda:
            hidden = hidden.clone()  # the graph's own buffer is written again by the next step
        return hidden[:, None] if every else hidden

    def _fix_shapes(self) -> None:
        """Put the streams one behind the other, with the same capacity; make the mask and the slots anew."""
        if not self.streams:
            return
        width = max(len(stream.held[0].blocks) for stream in self.streams)
        run = self.cached.caches[0].find_run([stream.held[0] for stream in self.streams])
        if run is None or self.streams[0].held[0].blocks[0] != 1:  # where a view of fixed shapes begins
            self._move_streams(width)
        lengths = torch.tensor([stream.length for stream in self.streams], device=self.layers.device)
        cache = self.cached.caches[0].cache.data
        if cache.is_cuda:
            torch._dynamo.mark_static_address(cache)  # a graph may write what it was given
        unused = torch.arange(width * BLOCK, device=cache.device) >= lengths[:, None]  # finite: zeros, or old entries
        mask = torch.zeros(unused.shape, device=cache.device, dtype=cache.dtype)
        self._mask = mask.masked_fill_(unused, -torch.inf)[:, None, None]  # [S, 1, 1, C]
        self._slots = lengths
        if width * BLOCK > len(self.rotary[0].cos):
            self.rotary = self.layers.make_rotary(width * BLOCK)

    def _move_streams(self, width: int) -> None:
        """Copy the streams into a cache of their own number, ``width`` blocks for each."""
        old, self.cached = self.cached, CachedStreams(self.layers)
        self.cached.reserve([width * len(self.streams)])
        moved = []
        for stream in self.streams:
            copy = self.cached.add()
            self.cached.cover(copy, width * BLOCK)
            source = old.caches[0].find_slots(stream.held[0], 0, stream.length)
            target = self.cached.caches[0].find_slots(copy.held[0], 0, stream.length)
            for new, held in zip(self.cached.caches[0].parts, old.caches[0].parts, strict=True):
                new[:, :, :, target] = held[:, :, :, source]
            copy.length, copy.prompt = stream.length, stream.prompt
            moved.append(copy)
        self.streams = moved

    def _step_once(
        self, ids: Tensor, slots: Tensor, mask: Tensor, tables: list[tuple[Tensor, Tensor]], cache: Tensor
    ) -> Tensor:
        """ids [S, 1] at slots [S] -> hidden [S, E]; writes cache [L, 2, K, T, D] and mask [S, 1, 1, C]."""
        mask.scatter_(3, slots[:, None, None, None], 0.0)
        view = _FixedView(cache, mask, slots)
        x = self.layers.run(self.layers.embed(ids), [RotaryTable(*table) for table in tables], view)
        return self.layers.apply_norm(x[:, -1])


class _FixedView(StepView):
    """A view of all slots of a cache [L, 2, K, T, D], of which one of each stream is written.

    mask: [S, 1, 1, C], of layers that see all. slots: int64 [S], of each stream.
    """

    def __init__(self, data: Tensor, mask: Tensor, slots: Tensor) -> None:
        num_streams, capacity = mask.shape[0], mask.shape[3]
        self.mask, self.own = mask, slots
        self.data = data[:, :, :, BLOCK : BLOCK + num_streams * capacity]
        self.targets = slots + capacity * torch.arange(num_streams, device=slots.device)
        self.positions = slots[:, None]

    def write(self, number: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        held = []
        for which, new in enumerate((k, v)):
            part = self.data[number, which]  # [K, S * C, D]
            part.index_copy_(1, self.targets, new[:, :, 0].transpose(0, 1))
            held.append(part.unflatten(1, (self.mask.shape[0], -1)).transpose(0, 1))
        return held[0], held[1]

    def make_bias(self, number: int, window: int | None) -> Tensor | None:
        if window is None:
            return self.mask
        slots = torch.arange(self.mask.shape[3], device=self.mask.device)
        return self.mask.masked_fill((slots <= (self.own - window)[:, None])[:, None, None], -torch.inf)

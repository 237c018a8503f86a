"""The lean step with fixed shapes, compiled: for GPUs, on which a small step is mostly kernel launches.

The prompt is read eagerly, since its length always differs. A step of one token then has fixed shapes: it attends over
the whole capacity, with unused slots masked, and the slot that it writes is a tensor on the device. So `torch.compile`
compiles it once for a number of streams and a capacity (rounded up to ``GRAIN``), and its mode ``reduce-overhead``
replays it as a CUDA graph. On a processor, compiling takes half a minute and gains nothing, so it must be asked for
there.

Shapes: S streams, C capacity of the cache, H query heads, K key/value heads, D head width, E width, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unimodal.generation.decoders.lean_decoder import LeanDecoder
from unimodal.generation.decoders.lean_layers import RotaryTable
from unimodal.generation.decoders.step_decoder import CachedPrefix, Prompts
from unimodal.generation.decoders.step_view import StepView

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GRAIN = 64


class CompiledDecoder(LeanDecoder):
    """A `LeanDecoder` whose steps of one token run a compiled function of fixed shapes.

    backend, mode: arguments of `torch.compile`; backend None runs the same function uncompiled.
    """

    _mask: Tensor | None = None  # [S, 1, 1, C] added to attention scores; None while a prompt is read
    _slot: Tensor  # int64 [1], the slot that the next token takes

    def __init__(
        self, model: PreTrainedModel, backend: str | Callable | None = "inductor", mode: str | None = None
    ) -> None:
        super().__init__(model)
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
        hidden = super().prefill(prompts, pad_id, -(-capacity // GRAIN) * GRAIN, prefixes)
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
        full = self.length + ids.shape[1] > self.cache.shape[4]
        if ids.shape[1] != 1 or offsets is not None or visible is not None or self._mask is None or full:
            hidden = super().step(ids, offsets, visible, every)
            if self._mask is not None:
                self._mask[..., self.length - ids.shape[1] : self.length] = 0
                self._slot += ids.shape[1]
            return hidden
        tables = [(table.cos, table.sin) for table in self.rotary]
        hidden = self._step(ids, self._slot, self.pads, self._mask, tables, self.cache.data)
        self._slot = self._slot + 1
        self.length += 1
        if self.compiled and hidden.is_cuda:
            hidden = hidden.clone()  # the graph's own buffer is written again by the next step
        return hidden[:, None] if every else hidden

    def _grow(self, capacity: int) -> None:
        super()._grow(-(-capacity // GRAIN) * GRAIN)
        if self._mask is not None:
            self._fix_shapes()

    def _fix_shapes(self) -> None:
        """Zero unwritten slots (masked ones must be finite too) and make the mask and the slot anew."""
        cache = self.cache.data
        cache[..., self.length :, :] = 0
        if cache.is_cuda:
            torch._dynamo.mark_static_address(cache)  # a graph may write what it was given
        slots = torch.arange(cache.shape[4], device=cache.device)
        hidden = (slots < self.pads[:, None]) | (slots >= self.length)
        mask = torch.zeros(hidden.shape, device=cache.device, dtype=cache.dtype)
        self._mask = mask.masked_fill_(hidden, -torch.inf)[:, None, None]  # [S, 1, 1, C]
        self._slot = torch.tensor([self.length], device=cache.device)

    def _step_once(
        self,
        ids: Tensor,
        slot: Tensor,
        pads: Tensor,
        mask: Tensor,
        tables: list[tuple[Tensor, Tensor]],
        cache: Tensor,
    ) -> Tensor:
        """ids [S, 1] at slot [1] -> hidden [S, E]; writes cache [L, 2, S, K, C, D] and mask [S, 1, 1, C]."""
        mask.index_fill_(3, slot, 0.0)
        view = _FixedView(cache, mask, slot, (slot - pads)[:, None])
        x = self.layers.run(self.layers.embed(ids), [RotaryTable(*table) for table in tables], view)
        return self.layers.apply_norm(x[:, -1])


class _FixedView(StepView):
    """A view of all slots of a cache [L, 2, S, K, C, D], of which one is written.

    mask: [S, 1, 1, C], of layers that see all. slot: int64 [1]. positions: int64 [S, 1].
    """

    def __init__(self, held: Tensor, mask: Tensor, slot: Tensor, positions: Tensor) -> None:
        self.held, self.mask, self.slot, self.positions = held, mask, slot, positions

    def write(self, number: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        for which, new in enumerate((k, v)):
            self.held[number, which].index_copy_(2, self.slot, new)
        return self.held[number, 0], self.held[number, 1]

    def make_bias(self, window: int | None) -> Tensor | None:
        if window is None:
            return self.mask
        slots = torch.arange(self.mask.shape[3], device=self.mask.device)
        return self.mask.masked_fill(slots <= self.slot - window, -torch.inf)

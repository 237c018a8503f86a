"""Where the new tokens of a step go in the cache, and what each of them sees there.

Layers ask it for masks, one for layers that see all and one for each window, or read the bounds themselves
(`unimodal/generation/native`).

Shapes: S streams, P new tokens, N slots that are read, K key/value heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from unimodal.generation.decoders.kv_cache import KeyValueCache


@dataclass(eq=False)
class StepView:
    """One step over rows 0..S of a cache.

    positions: of the new tokens, a slice of the rotary table or an index int64 [S, P] into it. slots: where they go, a
    slice for all streams, or int64 [S, P]. end: the slots 0..end are read. lows: int64 [S], the first slot of each
    stream; None if all begin at 0. seen: bool [S or 1, P, N], what each token sees; None is causal. places: int64
    [S, N], the position of each slot, needed with ``seen`` under windows. padding: [S, 1, 1, N or more] added to scores
    of causal steps of one token, if streams begin later than 0.
    """

    cache: KeyValueCache
    num_streams: int
    num_new: int
    positions: slice | Tensor
    slots: slice | Tensor
    end: int
    lows: Tensor | None = None
    seen: Tensor | None = None
    places: Tensor | None = None
    padding: Tensor | None = None
    _biases: dict[int | None, Tensor | None] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.cache.data.device

    def write(self, number: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values [S, K, P, D] of a layer; return all that it holds, each [S, K, N, D]."""
        rows = slice(0, self.num_streams)
        if isinstance(self.slots, slice):
            self.cache.write(number, (rows, slice(None), self.slots), k, v)
        else:
            index = (torch.arange(self.num_streams, device=self.device)[:, None], slice(None), self.slots)
            self.cache.write(number, index, k.transpose(1, 2), v.transpose(1, 2))
        return self.cache.read(number, (rows, slice(None), slice(0, self.end)))

    def spread_slots(self) -> Tensor:
        """The slot of each new token, int64 [S, P]."""
        if isinstance(self.slots, Tensor):
            return self.slots
        return torch.arange(self.slots.start, self.slots.stop, device=self.device).expand(self.num_streams, -1)

    def spread_lows(self) -> Tensor:
        """The first slot that each new token sees in a layer without a window, int64 [S, P]; itself on left padding."""
        slots = self.spread_slots()
        return torch.zeros_like(slots) if self.lows is None else torch.minimum(self.lows[:, None], slots)

    def spread_positions(self) -> Tensor:
        """The position of each new token, int64 [S, P]."""
        if isinstance(self.positions, Tensor):
            return self.positions.expand(self.num_streams, -1)
        return torch.arange(self.positions.start, self.positions.stop, device=self.device).expand(self.num_streams, -1)

    def make_bias(self, window: int | None) -> Tensor | None:
        """The mask added to scores, [S or 1, 1, P or 1, N]; None is causal over these tokens, or all for one token."""
        if window not in self._biases:
            self._biases[window] = self._build_bias(window)
        return self._biases[window]

    def _build_bias(self, window: int | None) -> Tensor | None:
        aligned = isinstance(self.slots, slice)
        if window is not None and window >= self.end:
            return self.make_bias(None)
        if self.seen is None and window is None and aligned:
            if self.num_new == 1:
                return None if self.padding is None else self.padding[..., : self.end]
            if self.lows is None and self.end == self.num_new:
                return None  # the kernel's own triangle
        keys = torch.arange(self.end, device=self.device)
        slots = self.spread_slots()[:1] if aligned and self.lows is None else self.spread_slots()
        if self.seen is not None:
            seen = self.seen
            if window is not None:
                assert self.places is not None
                seen = seen & (self.spread_positions()[..., None] - self.places[:, None] < window)
        else:
            seen = keys <= slots[..., None]  # [S, P, N]
            if window is not None:
                seen &= keys > slots[..., None] - window
            if self.lows is not None:
                seen &= keys >= self.lows[:, None, None]
        seen = seen | (keys == slots[..., None])  # a padding query sees itself: no NaN
        bias = torch.zeros(seen.shape, device=self.device, dtype=self.cache.dtype)
        return bias.masked_fill_(~seen, -torch.inf)[:, None]

"""Where the new tokens of a step go in the caches, and what each of them sees there.

Layers ask it for masks, one for layers that see all and one for each window, or read the tables of blocks themselves
(`unimodal/generation/native`).

Shapes: S streams, P new tokens, N tokens that a stream's blocks hold, B blocks of a stream, K key/value heads, D head
width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from unimodal.generation.decoders.paged_cache import BLOCK, PagedCache


@dataclass(eq=False)
class LayersView:
    """What the layers of one cache hold of S streams, and see in a step. Tokens are numbered from the first one held.

    table: int64 [S, B], the blocks of each stream; behind its last one block 0. numbers: int64 [S, P], of the new
    tokens, also of those that only pad. end: no stream holds more tokens. even: whether all streams have the same
    numbers. run: the slots of each stream, if these lie one behind the other in order. pads: bool [S, P], the tokens
    that pad, or None. seen: bool [S, P, N], what each token sees; None is causal.
    """

    paged: PagedCache
    table: Tensor
    numbers: Tensor
    end: int
    even: bool
    run: int | None = None
    pads: Tensor | None = None
    seen: Tensor | None = None

    @cached_property
    def targets(self) -> Tensor:
        """The slot of the cache that each new token is written to, int64 [S, P]; a slot of block 0 for pads."""
        blocks = (self.numbers // BLOCK).clamp_(max=self.table.shape[1] - 1)
        slots = self.table.gather(1, blocks) * BLOCK + self.numbers % BLOCK
        return slots if self.pads is None else slots.masked_fill_(self.pads, 0)

    def see(self, visible: Tensor, ends: Tensor, begins: Sequence[int]) -> None:
        """Take over a mask over the latest V tokens of each stream, bool [S or 1, P, V]; earlier ones are all seen.

        ends: int64 [S, 1], the number of tokens of each stream. begins: of those that its blocks no longer hold.
        """
        tokens = torch.arange(self.end, device=visible.device) + torch.tensor(begins, device=visible.device)[:, None]
        among = tokens - (ends - visible.shape[2])  # [S, N], the number among the V
        inside = among.clamp(0, visible.shape[2] - 1)[:, None].expand(-1, visible.shape[1], -1)
        seen = visible.expand(len(ends), -1, -1).gather(2, inside) | (among < 0)[:, None]
        self.seen = seen & (tokens < ends)[:, None]

    def find_places(self) -> Tensor:
        """The position of each token held, int64 [S, N]."""
        assert self.paged.places is not None
        places = self.paged.places.view(-1, BLOCK)[self.table]  # [S, B, BLOCK]
        return places.flatten(1)[:, : self.end]

    def read(self, number: int) -> tuple[Tensor, Tensor]:
        """Keys and values [S, K, N, D] of a layer."""
        if self.run is not None and self.end <= self.run:
            return self.paged.cache.read_run(number, self.start, len(self.table), self.run, self.end)
        return self.paged.cache.read_blocks(number, self.table, BLOCK, self.end)

    @cached_property
    def start(self) -> int:
        """The first slot of a run."""
        return int(self.table[0, 0]) * BLOCK

    def build_bias(self, window: int | None, positions: Tensor) -> Tensor | None:
        """The mask added to scores, [S or 1, 1, P or 1, N]; None is causal over these tokens, or all for one token.

        positions: int64 [S, P], of the new tokens.
        """
        num_new, device = self.numbers.shape[1], self.numbers.device
        unlimited = self.seen is None and self.even and (window is None or window >= self.end)
        if unlimited and (num_new == 1 or self.end == num_new):
            return None  # the kernel's own triangle
        keys = torch.arange(self.end, device=device)
        if self.seen is not None:
            seen = self.seen
            if window is not None:
                seen = seen & (positions[..., None] - self.find_places()[:, None] < window)
            seen = seen | (keys == self.numbers[..., None])
        else:
            numbers = (self.numbers[:1] if self.even else self.numbers)[..., None]
            seen = keys <= numbers  # [S, P, N]
            if window is not None:
                seen &= keys > numbers - window
        bias = torch.zeros(seen.shape, device=device, dtype=self.paged.cache.dtype)
        return bias.masked_fill_(~seen, -torch.inf)[:, None]


@dataclass(eq=False)
class StepView:
    """One step of S streams.

    caches: what the layers of each cache hold. homes: for each layer its cache, and its number there. positions: of the
    new tokens, a slice of the rotary table or an index int64 [S, P] into it.
    """

    caches: Sequence[LayersView]
    homes: Sequence[tuple[int, int]]
    num_streams: int
    num_new: int
    positions: slice | Tensor
    _biases: dict[tuple[int, int | None], Tensor | None] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.caches[0].numbers.device

    def write(self, number: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values [S, K, P, D] of a layer; return all that it holds, each [S, K, N, D]."""
        which, own = self.homes[number]
        held = self.caches[which]
        held.paged.cache.write(own, held.targets, k, v)
        return held.read(own)

    def spread_positions(self) -> Tensor:
        """The position of each new token, int64 [S, P]."""
        if isinstance(self.positions, Tensor):
            return self.positions.expand(self.num_streams, -1)
        return torch.arange(self.positions.start, self.positions.stop, device=self.device).expand(self.num_streams, -1)

    def make_bias(self, number: int, window: int | None) -> Tensor | None:
        """The mask of a layer with this window; see `LayersView.build_bias`."""
        key = (self.homes[number][0], window)
        if key not in self._biases:
            self._biases[key] = self.caches[key[0]].build_bias(window, self.spread_positions())
        return self._biases[key]

"""Blocks of a cache by stream: shared while nobody writes into them, given back when a window has passed on.

A cache is cut into blocks of `BLOCK` tokens, and a stream is a list of blocks, as in PagedAttention (Kwon et al.,
arXiv 2309.06180). So a stream takes what its own tokens need, whatever the others do; streams with one beginning hold
the same blocks, and who writes into a block that others hold gets a copy first; and layers with a sliding window keep
the blocks that their window can still see, in a ring: the block that falls out is the next to be written.

Shapes: S streams, B blocks of a stream, T slots of the cache.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unimodal.generation.decoders.kv_cache import KeyValueCache

BLOCK = 64  # tokens; `native/attention.h` has the same number


@dataclass(eq=False)
class Held:
    """The blocks of one stream, from its block number ``first`` on; earlier ones are gone. spare: of its ring."""

    blocks: list[int] = field(default_factory=list)
    first: int = 0
    spare: deque[int] = field(default_factory=deque)

    @property
    def begin(self) -> int:
        """The first token that is held."""
        return self.first * BLOCK


class PagedCache:
    """The cache of layers that see alike: all tokens, or a window.

    make: makes a `KeyValueCache` with so many slots. window: the longest of these layers; None for those that see all.
    places: int64 [1, 1, 1, T, 1], the position of the token in each slot; None without a window. Block 0 is nobody's:
    what pads a step is written there.
    """

    def __init__(self, make: Callable[[int], KeyValueCache], window: int | None) -> None:
        self.window = window
        self.cache = make(BLOCK)
        self.places: Tensor | None = None
        if window is not None:
            self.places = torch.zeros(1, 1, 1, BLOCK, 1, dtype=torch.int64, device=self.cache.data.device)
        self._counts = [1]  # holders of each block
        self._free: list[int] = []

    @property
    def parts(self) -> Sequence[Tensor]:
        """All that is kept of each slot, the fourth dimension."""
        return self.cache.parts if self.places is None else (*self.cache.parts, self.places)

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks that somebody holds."""
        return len(self._counts) - 1 - len(self._free)

    def count_blocks(self, num_tokens: int) -> int:
        """The most blocks that a stream of so many tokens holds between two steps of one token."""
        whole = -(-num_tokens // BLOCK)
        return whole if self.window is None else min(whole, (self.window - 1) // BLOCK + 2)

    def reserve(self, num_blocks: int) -> None:
        """Have so many free blocks; the cache grows if it must, which copies it."""
        missing = num_blocks - len(self._free)
        if missing <= 0:
            return
        have = len(self._counts)
        self._resize(have + missing)

    def _resize(self, num_blocks: int) -> None:
        have = len(self._counts)
        self.cache = self.cache.resize(num_blocks * BLOCK)
        if self.places is not None:
            more = self.places.new_zeros(1, 1, 1, (num_blocks - have) * BLOCK, 1)
            self.places = torch.cat([self.places, more], 3)
        for block in range(have, num_blocks):
            heapq.heappush(self._free, block)
        self._counts += [0] * (num_blocks - have)

    def _take(self) -> int:
        if not self._free:
            self.reserve(1 + len(self._counts) // 8)
        block = heapq.heappop(self._free)
        self._counts[block] = 1
        return block

    def _give_back(self, block: int) -> None:
        self._counts[block] -= 1
        if not self._counts[block]:
            heapq.heappush(self._free, block)

    # ---- the blocks of a stream

    def cover(self, held: Held, end: int) -> bool:
        """Have blocks for all tokens before ``end``; whether there are new ones."""
        missing = -(-end // BLOCK) - held.first - len(held.blocks)
        for _ in range(missing):
            held.blocks.append(held.spare.popleft() if held.spare else self._take())
        return missing > 0

    def drop(self, held: Held, need: int) -> bool:
        """Let go what lies before token ``need``; whether there was a block. Of a ring the block is written again."""
        gone = min(max(0, need // BLOCK - held.first), len(held.blocks))
        for block in held.blocks[:gone]:
            if self._counts[block] == 1:
                held.spare.append(block)
            else:
                self._give_back(block)
        del held.blocks[:gone]
        held.first += gone
        return gone > 0

    def trim(self, held: Held) -> None:
        """Give back the blocks of the ring that no step of one token needs."""
        assert self.window is not None
        while held.spare and len(held.blocks) + len(held.spare) > (self.window - 1) // BLOCK + 2:
            self._give_back(held.spare.pop())

    def share(self, held: Held, end: int) -> Held:
        """The blocks of the tokens before ``end`` for another stream."""
        blocks = held.blocks[: max(0, -(-end // BLOCK) - held.first)]
        for block in blocks:
            self._counts[block] += 1
        return Held(blocks, held.first)

    def release(self, held: Held) -> None:
        for block in (*held.blocks, *held.spare):
            self._give_back(block)
        held.blocks, held.spare = [], deque()

    def own(self, held: Held, begin: int, end: int) -> bool:
        """Copy those blocks of tokens begin..end that others hold too, before they are written; whether there were."""
        copied = False
        for number in range(begin // BLOCK - held.first, -(-end // BLOCK) - held.first):
            block = held.blocks[number]
            if self._counts[block] > 1:
                own = held.spare.popleft() if held.spare else self._take()
                for part in self.parts:
                    part[:, :, :, own * BLOCK : (own + 1) * BLOCK] = part[:, :, :, block * BLOCK : (block + 1) * BLOCK]
                self._give_back(block)
                held.blocks[number], copied = own, True
        return copied

    def find_slots(self, held: Held, begin: int, end: int) -> Tensor:
        """The slots of tokens begin..end of a stream, int64 [end - begin]."""
        blocks = torch.tensor(held.blocks, dtype=torch.int64, device=self.cache.data.device) * BLOCK
        tokens = torch.arange(begin - held.begin, end - held.begin, device=blocks.device)
        return blocks[tokens // BLOCK] + tokens % BLOCK if len(tokens) else tokens

    def find_run(self, every: Sequence[Held]) -> int | None:
        """Slots of each stream if all blocks of all streams lie one behind the other, as many for each; else None."""
        width, begin = len(every[0].blocks), every[0].blocks[0] if every[0].blocks else 0
        for number, held in enumerate(every):
            at = begin + number * width
            if held.blocks != list(range(at, at + width)):
                return None
        return width * BLOCK

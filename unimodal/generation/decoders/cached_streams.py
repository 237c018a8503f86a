"""Streams of tokens over paged caches: one for the layers that see all, one for those with windows.

A layer with a window needs the keys that the next tokens can still see and no others. So its cache holds the window and
what a step in flight writes, however long the stream becomes: before a step, blocks that lie before the window of its
first token are given up. Tokens of that step may be taken back (`keep_tokens`); what their successors see is there.

Shapes: S streams, P tokens of a step, L layers, K key/value heads, N tokens, D head width, T slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unimodal.generation.decoders.lean_layers import LeanLayers
from unimodal.generation.decoders.paged_cache import BLOCK, Held, PagedCache
from unimodal.generation.decoders.step_decoder import StreamCache
from unimodal.generation.decoders.step_view import LayersView, StepView
from unimodal.vocabulary.positions import Position


@dataclass(eq=False)
class CachedStream:
    """One stream: its number of tokens, its blocks in each cache, and the prompt that it begins with.

    straight: whether each token stands at the position of its number, as all do but those that fast decoders read in
    another order.
    """

    held: list[Held]
    length: int = 0
    straight: bool = True
    prompt: tuple[Position, ...] = ()


@dataclass(eq=False)
class _Layout:
    """What the blocks of the streams of a step are, as long as they stay. tables: int64 [S, B] for each cache."""

    streams: list[CachedStream]
    tables: list[Tensor] = field(default_factory=list)
    runs: list[int | None] = field(default_factory=list)


class CachedStreams:
    """The caches of some layers, and what is done with the streams in them."""

    def __init__(self, layers: LeanLayers) -> None:
        self.layers = layers
        self.caches = [PagedCache(make, window) for make, window in layers.list_caches()]
        self._layout = _Layout([])

    @property
    def num_bytes(self) -> int:
        """Of keys and values that memory is taken for."""
        return sum(paged.cache.num_bytes for paged in self.caches)

    @property
    def num_bytes_used(self) -> int:
        """Of those that streams hold."""
        return self.weigh([paged.num_used for paged in self.caches])

    def weigh(self, num_blocks: Sequence[int]) -> int:
        """The bytes of so many blocks of each cache."""
        return sum(
            num * paged.cache.num_bytes * BLOCK // paged.cache.shape[3]
            for num, paged in zip(num_blocks, self.caches, strict=True)
        )

    # ---- streams come and go

    def add(self) -> CachedStream:
        return CachedStream([Held() for _ in self.caches])

    def can_fork(self, stream: CachedStream, num_tokens: int) -> bool:
        """Whether another stream can begin with the first ``num_tokens`` tokens of this one."""
        return num_tokens <= stream.length and all(
            paged.window is None or held.begin <= max(0, num_tokens - paged.window + 1)
            for paged, held in zip(self.caches, stream.held, strict=True)
        )

    def fork(self, stream: CachedStream, num_tokens: int | None = None) -> CachedStream:
        """Another stream that begins with the tokens of this one; by default with all. Nothing is copied."""
        end = stream.length if num_tokens is None else num_tokens
        held = [paged.share(held, end) for paged, held in zip(self.caches, stream.held, strict=True)]
        return CachedStream(held, end, stream.straight, stream.prompt[:end])

    def release(self, stream: CachedStream) -> None:
        for paged, held in zip(self.caches, stream.held, strict=True):
            paged.release(held)
        self._layout = _Layout([])

    def cover(self, stream: CachedStream, capacity: int) -> None:
        """Take the blocks that a stream of so many tokens will need."""
        for paged, held in zip(self.caches, stream.held, strict=True):
            if paged.cover(held, min(capacity, held.begin + paged.count_blocks(capacity) * BLOCK)):
                self._layout = _Layout([])

    def trim(self, stream: CachedStream) -> None:
        """Give back what only a long step needed."""
        for paged, held in zip(self.caches, stream.held, strict=True):
            if paged.window is not None:
                paged.trim(held)

    def reserve(self, num_blocks: Sequence[int]) -> None:
        """Have so many free blocks in each cache, in one go."""
        for paged, num in zip(self.caches, num_blocks, strict=True):
            paged.reserve(num)

    # ---- a step

    def make_view(
        self,
        streams: Sequence[CachedStream],
        num_new: int,
        counts: Sequence[int] | None = None,
        offsets: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> StepView:
        """The view of a step of ``num_new`` tokens for each of these streams, which are longer then.

        counts: how many of these are tokens of each stream, the others pad it; by default all. offsets, visible: as of
        `StepDecoder.step`.
        """
        lengths = [stream.length for stream in streams]
        device = self.layers.device
        starts = torch.tensor(lengths, device=device)[:, None]  # [S, 1]
        numbers = starts + torch.arange(num_new, device=device)  # [S, P]
        even = len(set(lengths)) == 1
        positions: slice | Tensor = slice(lengths[0], lengths[0] + num_new) if even else numbers
        lowest, straight = lengths, [True] * len(lengths)
        if offsets is not None:
            positions = (starts + offsets).clamp_(min=0)
            rows = positions.expand(len(streams), -1).tolist()
            lowest = [min(own) for own in rows]
            straight = [own == list(range(n, n + num_new)) for own, n in zip(rows, lengths, strict=True)]
        ends = [n + (num_new if counts is None else counts[at]) for at, n in enumerate(lengths)]
        self._make_room(streams, lowest, ends)
        pads = None
        if counts is not None and min(counts) < num_new:
            pads = torch.arange(num_new, device=device) >= torch.tensor(list(counts), device=device)[:, None]  # [S, P]
        layout = self._layout
        views = []
        for number, paged in enumerate(self.caches):
            begins = [stream.held[number].begin for stream in streams]
            local = numbers
            if any(begins):
                local = numbers - torch.tensor(begins, device=device)[:, None]
            end = max(n + num_new - begin for n, begin in zip(lengths, begins, strict=True))
            table = layout.tables[number]
            own = LayersView(
                paged,
                torch.nn.functional.pad(table, (0, max(0, -(-end // BLOCK) - table.shape[1]))),  # for pads
                local,
                end,
                even and len(set(begins)) == 1,
                layout.runs[number],
                pads,
            )
            if visible is not None:
                own.see(visible, starts + num_new, begins)
            views.append(own)
        view = StepView(views, self.layers.homes, len(streams), num_new, positions)
        for own in views:
            if own.paged.places is not None:
                own.paged.places.view(-1)[own.targets] = view.spread_positions()
        for stream, end, in_order in zip(streams, ends, straight, strict=True):
            stream.straight &= in_order
            stream.length = end
        return view

    def _make_room(self, streams: Sequence[CachedStream], lowest: Sequence[int], ends: Sequence[int]) -> None:
        """Give up what no token from position ``lowest`` on sees, and have blocks of its own for what is written."""
        changed = list(streams) != self._layout.streams
        for number, paged in enumerate(self.caches):
            for stream, low, end in zip(streams, lowest, ends, strict=True):
                held = stream.held[number]
                if paged.window is not None:
                    need = low - paged.window + 1
                    if need - held.begin >= BLOCK:
                        if not stream.straight:
                            need = self._find_first(paged, held, stream.length, need)
                        changed |= paged.drop(held, need)
                changed |= paged.cover(held, end)
                changed |= paged.own(held, stream.length, end)
        if changed:
            self._layout = _Layout(list(streams))
            for number, paged in enumerate(self.caches):
                every = [stream.held[number] for stream in streams]
                width = max(len(held.blocks) for held in every)
                rows = [[*held.blocks, *[0] * (width - len(held.blocks))] for held in every]
                table = torch.tensor(rows, dtype=torch.int64, device=self.layers.device)
                self._layout.tables.append(table.view(len(rows), width))
                self._layout.runs.append(paged.find_run(every))

    @staticmethod
    def _find_first(paged: PagedCache, held: Held, length: int, need: int) -> int:
        """The first token that stands at position ``need`` or later."""
        assert paged.places is not None
        places = paged.places.view(-1)[paged.find_slots(held, held.begin, length)]
        later = (places >= need).nonzero()
        return held.begin + (int(later[0]) if len(later) else length - held.begin)

    def keep_tokens(self, streams: Sequence[CachedStream], kept: Sequence[Sequence[int]], num_new: int) -> None:
        """Of the last ``num_new`` tokens of each stream keep those that ``kept`` numbers."""
        moves = []
        for stream, numbers in zip(streams, kept, strict=True):
            begin = stream.length - num_new
            if list(numbers) != list(range(len(numbers))):
                moves.append((stream, begin, numbers))
            stream.length = begin + len(numbers)
        for number, paged in enumerate(self.caches) if moves else ():
            sources, targets = [], []
            for stream, begin, numbers in moves:
                held = stream.held[number]
                if paged.own(held, begin, begin + num_new):
                    self._layout = _Layout([])
                slots = paged.find_slots(held, begin, begin + num_new)
                sources.append(slots[torch.tensor(list(numbers), device=slots.device)])
                targets.append(slots[: len(numbers)])
            source, target = torch.cat(sources), torch.cat(targets)
            for part in paged.parts:
                part[:, :, :, target] = part[:, :, :, source]

    # ---- copies of streams

    def export(self, stream: CachedStream) -> StreamCache:
        parts, least = [], 0
        for paged, held in zip(self.caches, stream.held, strict=True):
            slots = paged.find_slots(held, held.begin, stream.length)
            parts += [part[:, :, :, slots] for part in paged.parts]
            if held.first:
                assert paged.window is not None
                least = held.begin + paged.window - 1
        return StreamCache(parts, least)

    def import_cache(self, cache: StreamCache, num_tokens: int, prompt: Sequence[Position]) -> CachedStream:
        """A stream of the first ``num_tokens`` tokens of a copy. prompt: these tokens."""
        stream, given = self.add(), list(cache.parts)
        stream.length, stream.prompt = num_tokens, tuple(prompt)
        for paged, held in zip(self.caches, stream.held, strict=True):
            own = [given.pop(0) for _ in paged.parts]
            if paged.window is not None and cache.least:
                held.first = (cache.least - paged.window + 1) // BLOCK
            paged.cover(held, num_tokens)
            slots = paged.find_slots(held, held.begin, num_tokens)
            for part, copy in zip(paged.parts, own, strict=True):
                part[:, :, :, slots] = copy[:, :, :, : num_tokens - held.begin]
        return stream

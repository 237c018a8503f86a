"""The lean step: streams over `LeanLayers` and paged caches, which share what their prompts have in common.

Every stream has its own length and its own blocks (`paged_cache.py`), so streams start together or join and leave
(continuous batching, Orca: Yu et al., OSDI 2022), are copied and cut, and no other is touched. What several prompts
begin with is read once and held once (`shared_prompts.py`). Cached keys are rotated already, so nothing is computed
again. Tests hold the step equal to the stock forward to 1e-5.

Shapes: S streams, P tokens of a step, E width, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unimodal.generation.decoders.cache_size import LayersSize
from unimodal.generation.decoders.cached_streams import CachedStream, CachedStreams
from unimodal.generation.decoders.flush_streams import stack_positions
from unimodal.generation.decoders.lean_layers import LeanLayers, RotaryTables
from unimodal.generation.decoders.paged_cache import BLOCK
from unimodal.generation.decoders.shared_prompts import (
    LEAST_SHARED,
    Stretch,
    count_common,
    find_unique,
    split_prompts,
)
from unimodal.generation.decoders.step_decoder import CachedPrefix, Prompts, StreamCache
from unimodal.vocabulary.positions import Position

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Prompts are read in pieces of so many tokens: beside others, since the mask [S, P, N] would else be larger than the
# cache; and under windows, whose cache holds what a piece writes besides.
_PIECE, _PIECE_UNDER_WINDOWS = 512, 128


class LeanDecoder:
    """A `StepDecoder` for stock bases; the protocol describes the methods. `PackedDecoder` has other layers.

    kv: the kind of the cache, of `CACHES`. shares: whether prompts share what they have in common. num_read: tokens of
    the last prompts that were read, those that several share counted once.
    """

    cached: CachedStreams
    streams: list[CachedStream]
    begun: list[CachedStream]  # prompts that are being read for rows to come
    rotary: RotaryTables
    num_computed: int
    num_read: int
    shares = True

    def __init__(self, model: PreTrainedModel | LeanLayers, kv: str = "model") -> None:
        self.layers = model if isinstance(model, LeanLayers) else LeanLayers(model, kv)
        self.streams, self.begun, self.num_read = [], [], 0

    @property
    def num_bytes(self) -> int:
        return self.cached.num_bytes

    def measure_layers(self) -> Sequence[LayersSize]:
        return [LayersSize(make(BLOCK).num_bytes // BLOCK, window) for make, window in self.layers.list_caches()]

    def prefill(
        self, prompts: Prompts, pad_id: int, capacity: int, prefixes: Sequence[CachedPrefix | None] = ()
    ) -> Tensor:
        self.layers.refresh()
        self.cached, self.streams, self.begun = CachedStreams(self.layers), [], []
        self.rotary = self.layers.make_rotary(capacity)
        return self._join(prompts, pad_id, [capacity] * len(prompts), prefixes)

    def step(
        self, ids: Tensor, offsets: Tensor | None = None, visible: Tensor | None = None, every: bool = False
    ) -> Tensor:
        x = self._run(self.streams, ids, None, offsets, visible)  # [S, P, E]
        return self.layers.apply_norm(x if every else x[:, -1])

    def commit(self, kept: Sequence[Sequence[int]], num_new: int) -> None:
        self.cached.keep_tokens(self.streams, kept, num_new)

    def keep(self, streams: Sequence[int]) -> None:
        kept: list[CachedStream] = []
        for number in streams:
            stream = self.streams[number]
            kept.append(self.cached.fork(stream) if stream in kept else stream)
        for stream in self.streams:
            if stream not in kept:
                self.cached.release(stream)
        self.streams = kept

    def export(self, stream: int) -> StreamCache:
        return self.cached.export(self.streams[stream])

    def count_read(self, stream: int) -> int:
        return self.streams[stream].length

    def convert(self, held: Tensor) -> StreamCache:
        """Keys and values [L, 2, K, N, W] of the first N tokens of a stream, as this decoder keeps them."""
        cached = CachedStreams(self.layers)
        stream = cached.add()
        view = cached.make_view([stream], held.shape[3])
        for number, (keys, values) in enumerate(held):
            view.write(number, keys[None], values[None])
        return cached.export(stream)

    # ---- prompts

    def _join(
        self, prompts: Prompts, pad_id: int, capacities: Sequence[int], prefixes: Sequence[CachedPrefix | None]
    ) -> Tensor:
        """Read prompts as further streams; return their last hidden states [new, E]."""
        distinct, numbers = find_unique(prompts)
        if not self.shares:
            distinct, numbers = [tuple(prompt) for prompt in prompts], list(range(len(prompts)))
        most = [max(c for c, n in zip(capacities, numbers, strict=True) if n == own) for own in range(len(distinct))]
        known = [prefixes[numbers.index(own)] for own in range(len(distinct))] if prefixes else [None] * len(distinct)
        begun = self._find_beginnings(distinct, known)
        made: list[CachedStream] = []  # of what is read here, given back if it fails
        try:
            copies = self._count_copies(distinct, numbers, capacities)
            ends, states = self._read_stretches(distinct, begun, most, copies, pad_id, made)
            streams = []
            for number in numbers:
                taken = ends[number] in streams
                streams.append(self.cached.fork(ends[number]) if taken else ends[number])
                made += [streams[-1]] if taken else []
            for stream, capacity in zip(streams, capacities, strict=True):
                self.cached.cover(stream, capacity)
        except BaseException:
            for stream in made:
                self.cached.release(stream)
            raise
        self.streams = [*self.streams, *streams]
        return torch.stack([states[number] for number in numbers])

    def _find_beginnings(
        self, prompts: Sequence[tuple[Position, ...]], prefixes: Sequence[CachedPrefix | None]
    ) -> list[tuple[CachedStream | StreamCache | None, int]]:
        """For each prompt who holds a beginning of it: another stream or a copy of one; and how many tokens of it."""
        found: list[tuple[CachedStream | StreamCache | None, int]] = []
        for prompt, prefix in zip(prompts, prefixes, strict=True):
            best: CachedStream | StreamCache | None = None
            most = 0
            if prefix is not None:
                best, most = prefix.cache, min(prefix.num_tokens, len(prompt) - 1)
            for stream in (*self.begun, *self.streams) if self.shares else self.begun:
                common = min(count_common(stream.prompt, prompt), len(prompt) - 1)
                enough = common >= LEAST_SHARED or stream in self.begun
                if enough and common > most and self.cached.can_fork(stream, common):
                    best, most = stream, common
            found.append((best, most))
        return found

    def _read_stretches(
        self,
        prompts: Sequence[tuple[Position, ...]],
        begun: Sequence[tuple[CachedStream | StreamCache | None, int]],
        capacities: Sequence[int],
        spare: Sequence[int],
        pad_id: int,
        made: list[CachedStream],
    ) -> tuple[list[CachedStream], list[Tensor]]:
        """Read distinct prompts; return the stream and the last state [E] of each.

        spare: blocks of each cache to have besides. made: all streams that are made.
        """
        trees = self._plant_trees(prompts, begun)
        blocks = self._count_blocks([stretch for tree in trees.values() for stretch in tree], capacities)
        self.cached.reserve([sum(both) for both in zip(blocks, spare, strict=True)])
        self.num_computed = max(len(prompt) - num for prompt, (_, num) in zip(prompts, begun, strict=True))
        self.num_read = 0
        copies: dict[StreamCache, CachedStream] = {}
        pending: list[tuple[CachedStream, Stretch]] = []
        for (source, num), tree in trees.items():
            if isinstance(source, StreamCache):
                if source not in copies:
                    longest, member = max((n, member) for member, (s, n) in enumerate(begun) if s is source)
                    copies[source] = self.cached.import_cache(source, longest, prompts[member][:longest])
                source = copies[source]
            for stretch in tree:
                stream = self.cached.add() if source is None else self.cached.fork(source, num)
                made.append(stream)
                if source is None and not stretch.parts:
                    self.cached.cover(stream, capacities[stretch.members[0]])
                pending.append((stream, stretch))
        for copy in copies.values():
            self.cached.release(copy)
        ends: dict[int, CachedStream] = {}
        states: dict[int, Tensor] = {}
        while pending:
            texts = [prompts[stretch.members[0]][stretch.begin : stretch.end] for _, stretch in pending]
            last = self._read([stream for stream, _ in pending], texts, pad_id)
            after: list[tuple[CachedStream, Stretch]] = []
            for (stream, stretch), state in zip(pending, last, strict=True):
                stream.prompt = prompts[stretch.members[0]][: stretch.end]
                if not stretch.parts:
                    ends[stretch.members[0]], states[stretch.members[0]] = stream, state
                forks = [self.cached.fork(stream) for _ in stretch.parts[1:]]
                made += forks
                after += zip((stream, *forks), stretch.parts, strict=False)
            pending = after
        every = range(len(prompts))
        return [ends[member] for member in every], [states[member] for member in every]

    def _plant_trees(
        self,
        prompts: Sequence[tuple[Position, ...]],
        begun: Sequence[tuple[CachedStream | StreamCache | None, int]],
    ) -> dict[tuple[CachedStream | StreamCache | None, int], list[Stretch]]:
        """What distinct prompts have in common, for each beginning that is held."""
        groups: dict[tuple[CachedStream | StreamCache | None, int], list[int]] = {}
        for member, beginning in enumerate(begun):
            groups.setdefault(beginning, []).append(member)
        if not self.shares:
            return {
                beginning: [Stretch([member], beginning[1], len(prompts[member]), []) for member in members]
                for beginning, members in groups.items()
            }
        return {beginning: split_prompts(prompts, members, beginning[1]) for beginning, members in groups.items()}

    def _count_blocks(self, tree: Sequence[Stretch], capacities: Sequence[int]) -> list[int]:
        """The blocks of each cache that these stretches and the answers behind them take."""
        needs = []
        for paged in self.cached.caches:
            need, left = 0, list(tree)
            while left:
                stretch = left.pop()
                left += stretch.parts
                if stretch.parts:
                    need += stretch.end // BLOCK - stretch.begin // BLOCK
                    continue
                capacity = max(capacities[stretch.members[0]], stretch.end)
                need += min(-(-capacity // BLOCK) - stretch.begin // BLOCK, paged.count_blocks(capacity))
            needs.append(need)
        return needs

    def _count_copies(
        self, prompts: Sequence[tuple[Position, ...]], numbers: Sequence[int], capacities: Sequence[int]
    ) -> list[int]:
        """The blocks of each cache that further rows of a prompt take. numbers: as of `find_unique`."""
        again = [
            (capacity, len(prompts[number]))
            for at, (capacity, number) in enumerate(zip(capacities, numbers, strict=True))
            if number in numbers[:at]
        ]
        return [
            sum(
                min(-(-capacity // BLOCK) - length // BLOCK, paged.count_blocks(capacity)) for capacity, length in again
            )
            for paged in self.cached.caches
        ]

    def _read(self, streams: Sequence[CachedStream], texts: Sequence[Sequence[Position]], pad_id: int) -> list[Tensor]:
        """Append tokens, not as many to each stream; return the state [E] of the last token of each."""
        states: dict[int, Tensor] = {}
        begin, longest = 0, max(map(len, texts))
        table = self.layers.prompted
        if table is not None and table.prompt.first_layer is not None:
            given = [stream.length >= len(table.prompt) or text[0] not in table.prompt.ids
                     for stream, text in zip(streams, texts, strict=True)]  # fmt: skip
            assert all(given), "a prompt with states in the layers is given as a prefix (prompt_cache.py)"
        self.num_read += sum(map(len, texts))
        piece = longest
        if self.layers.base.has_windows:
            piece = _PIECE_UNDER_WINDOWS
        elif len({len(text) for text in texts} | {stream.length for stream in streams}) > 1 or streams[0].length:
            piece = _PIECE
        while begin < longest:
            at = [number for number, text in enumerate(texts) if len(text) > begin]
            parts = [list(texts[number][begin : begin + piece]) for number in at]
            counts = [len(part) for part in parts]
            width = max(counts)
            ids = stack_positions([[*part, *[pad_id] * (width - len(part))] for part in parts], self.layers.device)
            x = self._run([streams[number] for number in at], ids, counts)
            last = self.layers.apply_norm(x[list(range(len(at))), [count - 1 for count in counts]])  # [S, E]
            for number, state in zip(at, last, strict=True):
                if len(texts[number]) <= begin + piece:
                    states[number] = state
            begin += piece
        for stream in streams:
            self.cached.trim(stream)
        return [states[number] for number in range(len(texts))]

    def _run(
        self,
        streams: Sequence[CachedStream],
        ids: Tensor,
        counts: Sequence[int] | None = None,
        offsets: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Append ids to these streams; their states [S, P, E] without the last norm. counts: as of `make_view`."""
        end = max(stream.length for stream in streams) + ids.shape[1]
        if end > len(self.rotary[0].cos):
            self.rotary = self.layers.make_rotary(end + end // 4)
        view = self.cached.make_view(streams, ids.shape[1], counts, offsets, visible)
        return self.layers.run(self.layers.embed(ids), self.rotary, view)

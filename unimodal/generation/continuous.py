"""A batch that requests join and leave between steps, so that no request waits for another to end.

    batch = ContinuousBatch(engine)
    [key] = batch.admit([GenerationRequest(prompt, config)])
    while len(batch):
        for done in batch.advance_rows():
            ...  # done.key, done.answer

The step is that of `plain.py`, over a decoder whose streams come and go (`decoders/slot_decoders.py`). Each row has its
own grammar, sampling, guidance, seed and noise. So an answer equals that of `Engine.generate` for the request alone,
whenever its row joins and whatever its neighbours are. Only one thread at a time may use a batch.

Shapes: S streams (rows and their unconditional twins), D width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING

import torch

from unimodal.compression import Method, open_methods
from unimodal.generation.decoders.compressed_slots import CompressedSlots
from unimodal.generation.decoders.slot_decoders import make_slots
from unimodal.generation.decoders.step_decoder import CachedPrefix, SlotDecoder
from unimodal.generation.grammar import GrammarBatch
from unimodal.generation.parts import EngineParts
from unimodal.generation.plain import PlainRun
from unimodal.generation.prompt_reader import PromptReader
from unimodal.generation.request import (
    CompressionEvent,
    FinishedRequest,
    GenerationRequest,
    GenerationStats,
    TokenEvent,
)
from unimodal.generation.run import PreparedBatch

if TYPE_CHECKING:
    from unimodal.generation.engine import Engine


class JoinableRun(PlainRun):
    """A run that starts without rows; rows join and leave between its steps.

    slots: the decoder of its streams. run_on: the most steps between two chances to join, while the grammars allow the
    same. stats: where it is counted what is computed.
    """

    def __init__(
        self,
        parts: EngineParts,
        slots: SlotDecoder,
        on_token: Callable[[TokenEvent], None],
        run_on: int,
        stats: GenerationStats,
    ) -> None:
        self.slots = slots
        nobody = PreparedBatch([], [], GrammarBatch([]), [], [])
        super().__init__(replace(parts, decoder=slots), nobody, on_token)
        self.run_on, self.watched, self.stats = run_on, False, stats

    def join(self, batch: PreparedBatch, prefixes: Sequence[CachedPrefix | None] = ()) -> None:
        """Read the prompts of further rows and append these to the others. prefixes: what is read of them already."""
        self.read_waiting()
        prefixes = self.parts.begin_streams(len(batch.prompts), prefixes)
        hidden = self.slots.join(batch.prompts, self.parts.pad_id, batch.capacities, prefixes)  # [S, D]
        self.hidden = torch.cat([self.hidden, hidden]) if self.configs else hidden
        self.streams.add_rows(len(batch.configs), batch.guided)
        self.grammar.grammars += batch.grammar.grammars
        self.grammar.states += batch.grammar.states
        self.configs += batch.configs
        self.answers += [[] for _ in batch.configs]
        self.begun += [list(codes) for codes in batch.begun]
        self.stats.prompt_tokens += sum(map(len, batch.prompts))

    def leave(self, rows: Collection[int]) -> None:
        """Drop these rows; those behind them move up."""
        kept = [row for row in range(len(self.configs)) if row not in rows]
        self.keep_streams(self.streams.drop_rows([row in rows for row in range(len(self.configs))]))
        self.streams.renumber_rows()
        index = torch.tensor(kept, dtype=torch.int64, device=self.hidden.device)
        self.waiting = [column[index] for column in self.waiting] if kept else []
        self.configs = [self.configs[row] for row in kept]
        self.answers = [self.answers[row] for row in kept]
        self.begun = [self.begun[row] for row in kept]
        self.grammar.grammars = [self.grammar.grammars[row] for row in kept]
        self.grammar.states = [self.grammar.states[row] for row in kept]

    # ---- different from a run whose rows all start together

    def drop_finished(self) -> None:
        self.drop_unguided()  # finished rows leave

    def count_certain_steps(self) -> int:
        return min(super().count_certain_steps(), self.run_on)

    def keep_streams(self, kept: list[int]) -> None:
        self.decoder.keep(kept)
        self.hidden = self.hidden[kept]

    def count_forward(self, num_new: int) -> None:
        self.stats.forwards += 1  # totals only: a list of steps would grow as long as the server runs
        self.stats.step_tokens += num_new * len(self.streams)


@dataclass
class _Seat:
    """A row's request and its key; error: the exception of its ``on_token``."""

    key: int
    request: GenerationRequest
    error: Exception | None = None


class _Lane:
    """Rows that take their steps together: those that are not compressed, or those under the same methods.

    slots: the decoder of its streams. on_token: told the events of a seat.
    """

    def __init__(
        self,
        parts: EngineParts,
        slots: SlotDecoder,
        run_on: int,
        stats: GenerationStats,
        methods: tuple[Method, ...] = (),
    ) -> None:
        self.run = JoinableRun(parts, slots, self._tell, run_on, stats)
        self.seats: list[_Seat] = []  # one a row
        self.methods = methods

    def join(self, batch: PreparedBatch, seats: Sequence[_Seat], prefixes: Sequence[CachedPrefix | None] = ()) -> None:
        self.run.join(batch, prefixes)
        self.seats += seats
        slots = self.run.slots
        if isinstance(slots, CompressedSlots):
            for seat, (num, kept) in zip(seats, slots.joined, strict=False):  # behind them are unconditional streams
                if seat.request.on_compressed is not None:
                    seat.request.on_compressed(CompressionEvent(seat.key, num, kept))

    def takes(self, methods: Sequence[Method]) -> bool:
        """Whether rows under these methods may join it."""
        slots = self.run.slots
        return self.methods == tuple(methods) and (not isinstance(slots, CompressedSlots) or slots.can_join)

    def take_finished(self) -> list[FinishedRequest]:
        rows = [row for row, state in enumerate(self.run.grammar.states) if state.finished]
        done = [FinishedRequest(self.seats[row].key, self.run.answers[row], self.seats[row].error) for row in rows]
        self.leave(rows)
        return done

    def leave(self, rows: Sequence[int]) -> None:
        if rows:
            self.run.leave(set(rows))
            self.seats = [seat for row, seat in enumerate(self.seats) if row not in rows]

    def close(self) -> None:
        """End the compression of its streams."""
        if isinstance(self.run.slots, CompressedSlots):
            self.run.slots.close()

    def _tell(self, event: TokenEvent) -> None:
        seat = self.seats[event.row]
        if seat.request.on_token is None:
            return
        over: bool | None = True
        try:
            over = seat.request.on_token(TokenEvent(seat.key, event.index, event.id, event.modality, event.finished))
        except Exception as error:
            seat.error = error
        if over:
            self.run.grammar.states[event.row].finished = True


class ContinuousBatch:
    """Rows that are answered together. ``run_on``: see `JoinableRun`.

    Rows under the same methods of compression share a decoder of their own (`compressed_slots.py`), beside the one of
    all rows that are not compressed; a step of the batch is one of each.
    """

    def __init__(self, engine: Engine, run_on: int = 4) -> None:
        self.engine, self.run_on = engine, run_on
        self._next_key = count()
        self._lanes: list[_Lane] = []
        self._begin()

    def _begin(self) -> None:
        self.stats = GenerationStats()  # what was computed since the batch was made or cleared
        parts = self.engine.parts
        self._read_ahead: tuple[GenerationRequest, PreparedBatch] | None = None
        self._plain = self._open_lane(parts, ())
        self.reader = PromptReader(parts, self._plain.run.slots)
        self._lanes = [self._plain]

    def _open_lane(self, parts: EngineParts, methods: tuple[Method, ...]) -> _Lane:
        decoder = parts.decoder
        slots = decoder if isinstance(decoder, CompressedSlots) else make_slots(decoder, parts.max_positions)
        return _Lane(parts, slots, self.run_on, self.stats, methods)

    @property
    def run(self) -> JoinableRun:
        """The run of the rows that are not compressed."""
        return self._plain.run

    def __len__(self) -> int:
        return sum(len(lane.seats) for lane in self._lanes)

    def count_written(self) -> dict[int, int]:
        """The tokens that are written of each row, by its key."""
        lanes = self._lanes
        return {seat.key: len(row) for lane in lanes for seat, row in zip(lane.seats, lane.run.answers, strict=True)}

    @property
    def num_streams(self) -> int:
        return sum(len(lane.run.streams) for lane in self._lanes)

    @property
    def num_bytes(self) -> int:
        """Of keys and values that the rows take, those of their answers to come included."""
        return sum(lane.run.slots.num_bytes_used for lane in self._lanes)

    def count_needed(self, request: GenerationRequest) -> int:
        """The bytes by which a request would raise `num_bytes`: what it shares with rows that are here is not new.

        Raises ValueError as `admit` does.
        """
        batch = self._prepare([request])
        for lane in self._lanes:
            if lane.takes(request.methods):
                return lane.run.slots.count_needed(batch.prompts, batch.capacities)
        return self.engine.count_cache_bytes(batch, bool(request.methods))

    def check(self, request: GenerationRequest) -> None:
        """Raises ValueError for a request that `admit` would refuse. Another thread may call this."""
        self.engine.prepare([request.prompt], [request.config], bool(request.methods))
        with open_methods(request.methods, self.engine):
            pass

    @torch.inference_mode()
    def read_ahead(self, request: GenerationRequest, most: int) -> bool:
        """Read at most ``most`` further tokens of a request that has not joined; whether `admit` has no more than that
        to read of any of its prompts. What was read is kept for the next `admit`.

        Under compression a prompt is read whole by `admit`. Raises ValueError as `admit` does.
        """
        if request.methods:
            return True
        if self._read_ahead is None or self._read_ahead[0] is not request:
            self.reader.forget()
            self._read_ahead = (request, self._prepare([request]))
        return self.reader.read(self._read_ahead[1].prompts, most)

    def forget_read(self) -> None:
        """Drop what `read_ahead` read, of a request that does not join after all."""
        self.reader.forget()
        self._read_ahead = None

    @torch.inference_mode()
    def admit(self, requests: Sequence[GenerationRequest]) -> list[int]:
        """Read the prompts, add their rows, and return a key for each.

        Raises ValueError where `Engine.generate` would, and for what a method of compression refuses; no row is changed
        then.
        """
        if not requests:
            return []
        groups = _group_alike(requests)
        batches = [self._prepare([requests[number] for number in group]) for group in groups]
        self.flush()
        if not len(self):
            self.engine.refresh_head()
        seats = [_Seat(next(self._next_key), request) for request in requests]
        try:
            lanes = [self._find_lane(requests[group[0]].methods) for group in groups]
            for lane, group, batch in zip(lanes, groups, batches, strict=True):
                prefixes = () if lane.methods else self.reader.find_prefixes(batch.prompts)
                lane.join(batch, [seats[number] for number in group], prefixes)
        except Exception:
            self.cancel([seat.key for seat in seats])
            raise
        if self._read_ahead is not None and any(request is self._read_ahead[0] for request in requests):
            self.forget_read()
        return [seat.key for seat in seats]

    def _prepare(self, alike: Sequence[GenerationRequest]) -> PreparedBatch:
        return self.engine.prepare([r.prompt for r in alike], [r.config for r in alike], bool(alike[0].methods))

    def _find_lane(self, methods: tuple[Method, ...]) -> _Lane:
        """The lane that rows under these methods join; a new one if there is none."""
        for lane in self._lanes:
            if lane.takes(methods):
                return lane
        lane = self._open_lane(self.engine.make_compressed_parts(methods), methods)
        self._lanes.append(lane)
        return lane

    @torch.inference_mode()
    def flush(self) -> None:
        """Read the tokens that wait for the next step, so that rows can join. After an exception call `clear`."""
        for lane in self._lanes:
            lane.run.read_waiting()

    @torch.inference_mode()
    def advance_rows(self) -> list[FinishedRequest]:
        """Write at least one token of every row; remove and return the finished rows.

        After an exception the rows cannot go on: call `clear`.
        """
        done: list[FinishedRequest] = []
        for lane in self._lanes:
            if lane.seats:
                lane.run.advance()
                done += lane.take_finished()
        self._close_empty()
        return done

    @torch.inference_mode()
    def cancel(self, keys: Sequence[int]) -> None:
        """Drop rows at once; keys of rows that have left are ignored."""
        for lane in self._lanes:
            lane.leave([row for row, seat in enumerate(lane.seats) if seat.key in keys])
        self._close_empty()

    def clear(self) -> list[int]:
        """Drop all rows and the decoder's cache; return the rows' keys. No later request gets one of these."""
        keys = [seat.key for lane in self._lanes for seat in lane.seats]
        for lane in self._lanes:
            lane.close()
        self._begin()
        return keys

    def _close_empty(self) -> None:
        """Close the lanes of methods under which no row is left."""
        for lane in [lane for lane in self._lanes if lane.methods and not lane.seats]:
            lane.close()
            self._lanes.remove(lane)


def _group_alike(requests: Sequence[GenerationRequest]) -> list[list[int]]:
    """The numbers of requests under the same methods of compression, in order."""
    groups: list[list[int]] = []
    for number, request in enumerate(requests):
        group = next((group for group in groups if requests[group[0]].methods == request.methods), None)
        if group is None:
            groups.append([number])
        else:
            group.append(number)
    return groups

"""A batch that requests join and leave between steps, so that no request waits for another to end.

    batch = ContinuousBatch(engine)
    [key] = batch.admit([GenerationRequest(prompt, config)])
    while len(batch):
        for done in batch.advance_rows():
            ...  # done.key, done.answer

The step is that of `plain.py`, over a decoder whose streams come and go (`decoders/slot_decoders.py`). Each row has its
own grammar, sampling, guidance, seed and noise. So an answer equals that of `Engine.generate` for the request alone,
whenever its row joins and whatever its neighbours are (except with int8 weights, see `packed_decoder.py`). Only one
thread at a time may use a batch.

Shapes: S streams (rows and their unconditional twins), D width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING

import torch

from unimodal.generation.decoders.slot_decoders import make_slots
from unimodal.generation.decoders.step_decoder import SlotDecoder
from unimodal.generation.grammar import GrammarBatch
from unimodal.generation.parts import EngineParts
from unimodal.generation.plain import PlainRun
from unimodal.generation.request import FinishedRequest, GenerationRequest, GenerationStats, TokenEvent
from unimodal.generation.run import PreparedBatch

if TYPE_CHECKING:
    from unimodal.generation.engine import Engine


class JoinableRun(PlainRun):
    """A run that starts without rows; rows join and leave between its steps.

    run_on: the most steps between two chances to join, while the grammars allow the same.
    """

    def __init__(self, parts: EngineParts, on_token: Callable[[TokenEvent], None], run_on: int) -> None:
        self.slots: SlotDecoder = make_slots(parts.decoder, parts.max_positions)
        nobody = PreparedBatch([], [], GrammarBatch([]), [], [])
        super().__init__(replace(parts, decoder=self.slots), nobody, on_token)
        self.run_on, self.watched = run_on, False

    def join(self, batch: PreparedBatch) -> None:
        """Read the prompts of further rows and append these to the others."""
        self.read_waiting()
        row_of = [*range(len(batch.configs)), *batch.guided]
        capacities = [
            len(ids) + batch.configs[row].max_new_tokens for ids, row in zip(batch.prompts, row_of, strict=True)
        ]
        hidden = self.slots.join(batch.prompts, self.parts.pad_id, capacities)  # [S, D]
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


class ContinuousBatch:
    """Rows that are answered together. ``run_on``: see `JoinableRun`."""

    def __init__(self, engine: Engine, run_on: int = 4) -> None:
        self.engine = engine
        self.run = JoinableRun(engine.parts, self._tell, run_on)
        self._seats: list[_Seat] = []  # one a row
        self._next_key = count()

    def __len__(self) -> int:
        return len(self._seats)

    @property
    def num_streams(self) -> int:
        return len(self.run.streams)

    @property
    def stats(self) -> GenerationStats:
        """What was computed since the batch was made or cleared."""
        return self.run.stats

    def check(self, request: GenerationRequest) -> None:
        """Raises ValueError for a request that `admit` would refuse. Another thread may call this."""
        self.engine.prepare([request.prompt], [request.config])

    @torch.inference_mode()
    def admit(self, requests: Sequence[GenerationRequest]) -> list[int]:
        """Read the prompts, add their rows, and return a key for each.

        Raises ValueError where `Engine.generate` would; no row is changed then.
        """
        if not requests:
            return []
        batch = self.engine.prepare([r.prompt for r in requests], [r.config for r in requests])
        self.flush()
        if not len(self):
            self.engine.refresh_head()
        self.run.join(batch)
        seats = [_Seat(next(self._next_key), request) for request in requests]
        self._seats += seats
        return [seat.key for seat in seats]

    @torch.inference_mode()
    def flush(self) -> None:
        """Read the tokens that wait for the next step, so that rows can join. After an exception call `clear`."""
        self.run.read_waiting()

    @torch.inference_mode()
    def advance_rows(self) -> list[FinishedRequest]:
        """Write at least one token of every row; remove and return the finished rows.

        After an exception the rows cannot go on: call `clear`.
        """
        if not len(self):
            return []
        self.run.advance()
        rows = [row for row, state in enumerate(self.run.grammar.states) if state.finished]
        done = [FinishedRequest(self._seats[row].key, self.run.answers[row], self._seats[row].error) for row in rows]
        self._leave(rows)
        return done

    @torch.inference_mode()
    def cancel(self, keys: Sequence[int]) -> None:
        """Drop rows at once; keys of rows that have left are ignored."""
        self._leave([row for row, seat in enumerate(self._seats) if seat.key in keys])

    def clear(self) -> list[int]:
        """Drop all rows and the decoder's cache; return the rows' keys. No later request gets one of these."""
        keys = [seat.key for seat in self._seats]
        self.run = JoinableRun(self.engine.parts, self._tell, self.run.run_on)
        self._seats = []
        return keys

    def _leave(self, rows: Sequence[int]) -> None:
        if rows:
            self.run.leave(set(rows))
            self._seats = [seat for row, seat in enumerate(self._seats) if row not in rows]

    def _tell(self, event: TokenEvent) -> None:
        seat = self._seats[event.row]
        if seat.request.on_token is None:
            return
        over: bool | None = True
        try:
            over = seat.request.on_token(TokenEvent(seat.key, event.index, event.id, event.modality, event.finished))
        except Exception as error:
            seat.error = error
        if over:
            self.run.grammar.states[event.row].finished = True

"""The one thread that touches the model: the steps of the running batch, and short pieces of work between them.

Other threads hand in requests and jobs and get futures. In each turn the worker does pieces of work (media into codes,
codes into media, the next piece of an answer that takes several rows), lets those who wait join the batch, and takes
one step of it. The pieces of a turn may take as long as the step before did, and at least one of every kind is done, so
nobody stands still for another's work. An answer of several rows (`generation/composition.py`: speech, transcripts,
searches) writes its drafts as rows like any others, and can be cancelled between any two steps.

A job that fails takes no other with it: what failed together is tried again one by one, and a failed step fails the
rows that were in it and leaves an empty batch.

Shapes: N codes, G groups.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from time import monotonic
from typing import TypeVar

import numpy as np
from torch import Tensor

from unimodal.generation.continuous import ContinuousBatch
from unimodal.generation.request import FinishedRequest, GenerationRequest
from unimodal.pipeline import Unimodal
from unimodal.serve.cache_budget import CacheBudget, explain_shortage
from unimodal.serve.coding import CODED_AT_ONCE, CODED_BESIDE_ROWS, CodingQueue
from unimodal.serve.long_prompts import LongPrompts
from unimodal.serve.tickets import Composing, ShuttingDown, Ticket, fail, settle, settle_with
from unimodal.serve.waiting import Newcomers, WaitingRows

log = logging.getLogger("unimodal.serve")

WORK_SECONDS = 0.05  # of the pieces of one turn, where no row waits for them

Result = TypeVar("Result")


class Worker:
    """`start` it, and `stop` it. All other methods may be called from any thread. cache_bytes: of the keys and values
    of all rows (`cache_budget.py`).

    on_turn is told of every step: its seconds, the rows in it, the requests that wait for a row; on_work of the seconds
    of the pieces of work before it.
    """

    def __init__(
        self,
        model: Unimodal,
        max_batch: int,
        cache_bytes: int | None = None,
        on_turn: Callable[[float, int, int], None] = lambda *_: None,
        on_work: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.model, self.max_batch, self.on_turn, self.on_work = model, max_batch, on_turn, on_work
        self._budget = CacheBudget(model.engine, cache_bytes)
        self.most_composing = max(1, max_batch // 4)  # answers of several rows at a time; each holds memory
        self._changed = threading.Condition()
        self._waiting = WaitingRows(max_batch)
        self._coding = CodingQueue(model.coder)
        self._calls: deque[tuple[Future[object], Callable[[], object]]] = deque()
        self._to_compose: deque[Ticket] = deque()
        self._left: list[Ticket] = []  # cancelled while they had a row or were being composed
        self._composing: list[Composing] = []
        self._ready: deque[Composing] = deque()  # those whose next piece of work can be done
        self._rows: dict[int, Ticket] = {}
        self._long = LongPrompts()
        self._step_seconds = WORK_SECONDS
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="unimodal-worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what is not finished fails with ShuttingDown."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._stopping

    @property
    def num_rows(self) -> int:
        """Rows in the batch."""
        return len(self._rows)

    @property
    def num_running(self) -> int:
        """Requests that are being answered."""
        return len(self._composing) + sum(ticket.owner is None for ticket in list(self._rows.values()))

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a row."""
        reading = sum(ticket.owner is None for ticket in list(self._long.tickets))
        return len(self._waiting.requests) + len(self._to_compose) + reading

    # ---- jobs

    def submit(self, request: GenerationRequest, client: str = "") -> Ticket:
        """Answer a request, as a row of the batch or as several. client: who asks; where requests wait, the client that
        was given the fewest tokens is next. Raises ShuttingDown, as all of these do, once the worker stops.
        """
        ticket = Ticket(request, client=client)
        with self._open_queues():
            queue = self._waiting.requests if request.compose is None else self._to_compose
            self._waiting.accounts.enter(client, [*self._waiting.requests, *self._to_compose])
            queue.append(ticket)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Free the ticket's rows, or its place in the queue."""
        with self._changed:
            ticket.cancelled = True
            if ticket in self._to_compose:
                self._to_compose.remove(ticket)
            elif not self._waiting.remove(ticket):
                self._left.append(ticket)
            self._changed.notify()
        ticket.future.cancel()

    def encode(self, modality: str, medium: Tensor) -> Future[np.ndarray]:
        """A medium as the coder reads it → its codes [N] or [N, G]."""
        with self._open_queues():
            return self._coding.encode(modality, medium)

    def decode(self, modality: str, codes: np.ndarray) -> Future[Tensor]:
        """Codes [N] or [N, G] → the medium."""
        with self._open_queues():
            return self._coding.decode(modality, codes)

    def call(self, work: Callable[[], Result]) -> Future[Result]:
        """Anything else that needs the model and is short."""
        future: Future[Result] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():  # False: its request has gone
                settle_with(future, work)

        with self._open_queues():
            self._calls.append((future, run))  # type: ignore[arg-type]  # a future of any result
        return future

    @contextmanager
    def _open_queues(self) -> Iterator[None]:
        """What waits for the next turn, to add to it."""
        with self._changed:
            if self._stopping:
                raise ShuttingDown
            yield
            self._changed.notify()

    # ---- the thread

    def _run(self) -> None:
        batch = ContinuousBatch(self.model.engine)
        while True:
            with self._changed:
                while not (self._stopping or self._left or self._has_work(batch)):
                    self._changed.wait()
                if self._stopping:
                    break
                left, self._left = self._left, []
            try:
                self._take_turn(batch, left)
            except Exception as error:  # a defect of ours: nothing may hang for it
                log.exception("a turn of the worker failed")
                self._fail_all(batch, error)
        self._fail_all(batch, ShuttingDown())

    def _has_work(self, batch: ContinuousBatch) -> bool:
        return bool(
            len(batch) or self._coding or self._calls or self._ready or self._waiting or self._long.tickets
        ) or bool(self._to_compose and len(self._composing) < self.most_composing)

    def _take_turn(self, batch: ContinuousBatch, left: Sequence[Ticket]) -> None:
        for ticket in left:
            self._drop(batch, ticket)
        started = monotonic()
        if self._do_work(batch):
            self.on_work(monotonic() - started)
        started = monotonic()
        rows = 0
        try:
            batch.flush()
            self._admit(batch)
            rows = len(batch)
            finished = batch.advance_rows()
        except Exception as error:
            log.exception("a step of %d rows failed", len(batch))
            self._fail_rows(batch, error)
            return
        with self._changed:  # other threads enter clients meanwhile
            for key, num in batch.count_written().items():
                self._rows[key].charge(self._waiting.accounts, num)
        for done in finished:
            self._deliver(batch, done)
        if rows:
            self._step_seconds = monotonic() - started
            self.on_turn(self._step_seconds, rows, self.num_waiting)

    # ---- pieces of work

    def _do_work(self, batch: ContinuousBatch) -> bool:
        """Pieces of work of each kind, for as long as a step takes; whether there were any."""
        beside = bool(len(batch))
        allowed_s = self._step_seconds if beside else WORK_SECONDS
        at_once = CODED_BESIDE_ROWS if beside else CODED_AT_ONCE
        pieces = (
            (lambda: bool(self._coding), lambda: self._coding.run_next(at_once)),
            (lambda: bool(self._calls), self._run_call),
            (self._can_compose, lambda: self._compose(batch)),
        )
        any_done = False
        for waits, work in pieces:
            started = monotonic()
            while waits():
                work()
                any_done = True
                if monotonic() - started >= allowed_s:
                    break
        return any_done

    def _run_call(self) -> None:
        _, run = self._calls.popleft()
        run()

    def _can_compose(self) -> bool:
        return bool(self._ready or (self._to_compose and len(self._composing) < self.most_composing))

    def _compose(self, batch: ContinuousBatch) -> None:
        """The next piece of work of an answer of several rows; those of several answers take turns."""
        with self._changed:
            if self._to_compose and len(self._composing) < self.most_composing:
                ticket = self._waiting.accounts.choose(self._to_compose)
                self._to_compose.remove(ticket)
                assert ticket.request.compose is not None
                composition = ticket.request.compose(ticket.request.on_token, 0)
                self._composing.append(Composing(ticket, composition))
                self._ready.append(self._composing[-1])
        one = self._ready.popleft()
        try:
            drafts = one.advance()
        except StopIteration as end:
            self._end(batch, one)
            settle(one.ticket.future, end.value)
        except Exception as error:
            self._end(batch, one)
            fail(one.ticket.future, error)
        else:
            if drafts:
                with self._changed:
                    self._waiting.drafts.extend(drafts)
            else:
                self._ready.append(one)

    def _end(self, batch: ContinuousBatch, one: Composing) -> None:
        """Take an answer of several rows out of everything, its rows first."""
        if one in self._ready:
            self._ready.remove(one)
        self._free_rows(batch, [key for key, ticket in self._rows.items() if ticket.owner is one])
        for draft in [draft for draft in self._long.tickets if draft.owner is one]:
            self._long.remove(batch, draft)
        with self._changed:
            self._waiting.remove_drafts(one)
            self._composing.remove(one)
        one.composition.close()

    def _drop(self, batch: ContinuousBatch, ticket: Ticket) -> None:
        """Free what a request that has gone still holds."""
        self._long.remove(batch, ticket)
        if ticket.key is not None:
            self._free_rows(batch, [ticket.key])
        for one in [one for one in self._composing if one.ticket is ticket]:
            self._end(batch, one)

    def _free_rows(self, batch: ContinuousBatch, keys: Sequence[int]) -> None:
        batch.cancel(keys)
        for key in keys:
            self._rows.pop(key, None)

    # ---- rows

    def _admit(self, batch: ContinuousBatch) -> None:
        """Let as many of those who wait join as there are rows and memory for. A long prompt is read in slices, one a
        turn, and who waits behind it goes on."""
        coming = Newcomers(self._read_slice(batch), bool(len(batch)))
        seated = [*self._rows.values(), *coming.tickets, *self._long.tickets]
        num_drafts = sum(ticket.owner is not None for ticket in seated)
        counts = [len(seated) - num_drafts, num_drafts]
        unfit: list[tuple[Ticket, Exception]] = []
        self._budget.begin_turn(batch, [*coming.tickets, *self._long.tickets])
        with self._changed:
            while (ticket := self._waiting.find_next(*counts, fits=self._budget.fits)) is not None:
                try:
                    self._budget.take(ticket)
                except ValueError as error:
                    unfit.append((ticket, error))
                else:
                    if self._long.is_long(ticket) and not coming.knows(ticket):
                        self._long.tickets.append(ticket)
                    elif not coming.add(ticket):
                        break
                    counts[ticket.owner is not None] += 1
                self._waiting.take(ticket)
        for ticket, reason in unfit:
            self._fail_ticket(batch, ticket, reason)
        newcomers = [ticket for ticket in coming.tickets if ticket.owner is None or ticket.owner in self._composing]
        if not newcomers:
            return
        try:
            keys = batch.admit([ticket.request for ticket in newcomers])
        except Exception as error:
            if len(newcomers) == 1:
                self._fail_ticket(batch, newcomers[0], error)
                return
            for ticket in newcomers:
                if ticket.owner is not None and ticket.owner not in self._composing:
                    continue  # another draft of its answer has failed just now
                try:
                    self._seat(ticket, batch.admit([ticket.request])[0])
                except Exception as own:
                    self._fail_ticket(batch, ticket, own)
        else:
            for ticket, key in zip(newcomers, keys, strict=True):
                self._seat(ticket, key)

    def _read_slice(self, batch: ContinuousBatch) -> Sequence[Ticket]:
        """A slice of a long prompt; who joins once it is read."""
        try:
            return self._long.read_slice(batch)
        except Exception as error:
            first = self._long.tickets[0]
            self._long.remove(batch, first)
            self._fail_ticket(batch, first, error)
            return []

    def _seat(self, ticket: Ticket, key: int) -> None:
        with self._changed:
            ticket.key = key
            self._rows[key] = ticket
            if ticket.cancelled and ticket not in self._left:
                self._left.append(ticket)

    def _deliver(self, batch: ContinuousBatch, done: FinishedRequest) -> None:
        ticket = self._rows.pop(done.key, None)
        if ticket is None:  # a draft of an answer that another draft has just failed
            return
        with self._changed:
            ticket.charge(self._waiting.accounts, len(done.answer))
        if done.error is not None:
            self._fail_ticket(batch, ticket, done.error)
            return
        settle(ticket.future, done.answer)
        if ticket.owner is not None and ticket.owner in self._composing and ticket.owner.ready:
            self._ready.append(ticket.owner)

    def _fail_ticket(self, batch: ContinuousBatch, ticket: Ticket, error: Exception) -> None:
        """Fail a request, or with a draft the answer that it belongs to."""
        error = explain_shortage(error, self._budget.most)
        if ticket.owner is None:
            fail(ticket.future, error)
        elif ticket.owner in self._composing:
            self._end(batch, ticket.owner)
            fail(ticket.owner.ticket.future, error)

    def _fail_rows(self, batch: ContinuousBatch, error: Exception) -> None:
        batch.clear()
        rows, self._rows = self._rows, {}
        for ticket in rows.values():
            self._fail_ticket(batch, ticket, error)

    def _fail_all(self, batch: ContinuousBatch, error: Exception) -> None:
        """Fail all that is here, with a batch that is empty then."""
        self._fail_rows(batch, error)
        reading = [ticket for ticket in self._long.clear(batch) if ticket.owner is None]
        for one in list(self._composing):
            self._end(batch, one)
            fail(one.ticket.future, error)
        with self._changed:
            tickets = [*reading, *self._waiting.clear(), *self._to_compose]
            calls = list(self._calls)
            self._to_compose.clear()
            self._calls.clear()
            self._coding.fail(error)
        for ticket in tickets:
            fail(ticket.future, error)
        for future, _ in calls:
            fail(future, error)

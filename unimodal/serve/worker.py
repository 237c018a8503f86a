"""The one thread that touches the model: media into codes, codes into media, and the steps of the running batch.

Other threads hand in requests and jobs and get futures. In each turn the worker codes all media that wait, those of one
medium together, lets waiting requests join the batch, and takes one step of the batch. A job that fails takes no other
with it: what failed together is tried again one by one, and a failed step fails the rows that were in it and leaves an
empty batch.

Shapes: N codes, G groups.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Generic, Protocol, TypeVar

import numpy as np
from torch import Tensor

from unimodal.generation.continuous import ContinuousBatch
from unimodal.generation.request import FinishedRequest, GenerationRequest
from unimodal.pipeline import Unimodal

log = logging.getLogger("unimodal.serve")

CODED_AT_ONCE = 16
MOST_PROMPT_TOKENS = 4096  # read in one turn, padding included; a larger request joins alone

Given = TypeVar("Given")
Result = TypeVar("Result")


class ShuttingDown(RuntimeError):
    """The server is going; the request was not answered."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down; try again later")


@dataclass(eq=False)
class Ticket:
    """A request on its way: `future` gives the answer's ids."""

    request: GenerationRequest
    future: Future[list[int]] = field(default_factory=Future)
    key: int | None = None  # once it has a row
    cancelled: bool = False


class _Job(Protocol):
    """What the worker does between two steps."""

    def run(self) -> None: ...

    def fail(self, error: Exception) -> None: ...


@dataclass(eq=False)
class _Call(Generic[Result]):
    """Anything that needs the model."""

    work: Callable[[], Result]
    future: Future[Result] = field(default_factory=Future)

    def run(self) -> None:
        if self.future.set_running_or_notify_cancel():  # False: its request has gone
            _settle_with(self.future, self.work)

    def fail(self, error: Exception) -> None:
        _fail(self.future, error)


@dataclass(eq=False)
class _Coding(Generic[Given, Result]):
    """A medium to encode, or codes to decode; those of one medium are coded together."""

    modality: str
    item: Given
    future: Future[Result] = field(default_factory=Future)


@dataclass
class _Jobs:
    """What waits for the next turn."""

    encode: list[_Coding[Tensor, np.ndarray]] = field(default_factory=list)
    decode: list[_Coding[np.ndarray, Tensor]] = field(default_factory=list)
    calls: list[_Job] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.encode or self.decode or self.calls)

    def fail(self, error: Exception) -> None:
        for encoding in self.encode:
            _fail(encoding.future, error)
        for decoding in self.decode:
            _fail(decoding.future, error)
        for call in self.calls:
            call.fail(error)


class Worker:
    """`start` it, and `stop` it. All other methods may be called from any thread."""

    def __init__(
        self, model: Unimodal, max_batch: int, on_turn: Callable[[float, int, int], None] = lambda *_: None
    ) -> None:
        """on_turn is told of every step: its seconds, the rows in it, the requests that wait for a row."""
        self.model, self.max_batch, self.on_turn = model, max_batch, on_turn
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._jobs = _Jobs()
        self._left: list[Ticket] = []  # cancelled while they had a row
        self._rows: dict[int, Ticket] = {}
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
    def num_running(self) -> int:
        return len(self._rows)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    # ---- jobs

    def submit(self, request: GenerationRequest) -> Ticket:
        """Answer a request: as a row of the batch, or in one turn of its own if it says so (`alone`).

        Raises ShuttingDown, as all of these do, once the worker is stopped.
        """
        ticket = Ticket(request)
        with self._open_jobs() as jobs:
            if request.alone is None:
                self._waiting.append(ticket)
            else:
                jobs.calls.append(_Call(partial(request.alone, request.on_token, 0), ticket.future))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Free the ticket's row, or its place in the queue."""
        with self._changed:
            ticket.cancelled = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            else:
                self._left.append(ticket)
            self._changed.notify()
        ticket.future.cancel()

    def encode(self, modality: str, medium: Tensor) -> Future[np.ndarray]:
        """A medium as the coder reads it → its codes [N] or [N, G]."""
        job: _Coding[Tensor, np.ndarray] = _Coding(modality, medium)
        with self._open_jobs() as jobs:
            jobs.encode.append(job)
        return job.future

    def decode(self, modality: str, codes: np.ndarray) -> Future[Tensor]:
        """Codes [N] or [N, G] → the medium."""
        job: _Coding[np.ndarray, Tensor] = _Coding(modality, codes)
        with self._open_jobs() as jobs:
            jobs.decode.append(job)
        return job.future

    def call(self, work: Callable[[], Result]) -> Future[Result]:
        """Anything else that needs the model."""
        job = _Call(work)
        with self._open_jobs() as jobs:
            jobs.calls.append(job)
        return job.future

    @contextmanager
    def _open_jobs(self) -> Iterator[_Jobs]:
        """What waits for the next turn, to add to it."""
        with self._changed:
            if self._stopping:
                raise ShuttingDown
            yield self._jobs
            self._changed.notify()

    # ---- the thread

    def _run(self) -> None:
        batch = ContinuousBatch(self.model.engine)
        while True:
            with self._changed:
                while not (self._stopping or self._waiting or self._jobs or self._left or len(batch)):
                    self._changed.wait()
                if self._stopping:
                    break
                jobs, self._jobs = self._jobs, _Jobs()
                left, self._left = self._left, []
            try:
                self._take_turn(batch, jobs, left)
            except Exception as error:  # a defect of ours: nothing may hang for it
                log.exception("a turn of the worker failed")
                jobs.fail(error)
                self._fail_rows(batch, error)
        with self._changed:
            tickets = [*self._waiting, *self._rows.values()]
            jobs, self._jobs = self._jobs, _Jobs()
            self._waiting.clear()
            self._rows.clear()
        for ticket in tickets:
            _fail(ticket.future, ShuttingDown())
        jobs.fail(ShuttingDown())

    def _take_turn(self, batch: ContinuousBatch, jobs: _Jobs, left: list[Ticket]) -> None:
        keys = [ticket.key for ticket in left if ticket.key is not None]
        batch.cancel(keys)
        for key in keys:
            self._rows.pop(key, None)
        coder = self.model.coder
        _code_together(jobs.encode, coder.encode)
        _code_together(jobs.decode, coder.decode)
        for call in jobs.calls:
            call.run()
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
        for done in finished:
            self._deliver(done)
        if rows:
            self.on_turn(monotonic() - started, rows, len(self._waiting))

    def _admit(self, batch: ContinuousBatch) -> None:
        """Let as many waiting requests join as there are rows for."""
        newcomers: list[Ticket] = []
        longest = 0
        with self._changed:
            while self._waiting and len(batch) + len(newcomers) < self.max_batch:
                longest = max(longest, len(self._waiting[0].request.prompt))
                if newcomers and longest * (len(newcomers) + 1) > MOST_PROMPT_TOKENS:
                    break
                newcomers.append(self._waiting.popleft())
        if not newcomers:
            return
        try:
            keys = batch.admit([ticket.request for ticket in newcomers])
        except Exception as error:
            if len(newcomers) == 1:
                _fail(newcomers[0].future, error)
                return
            for ticket in newcomers:
                try:
                    self._seat(ticket, batch.admit([ticket.request])[0])
                except Exception as own:
                    _fail(ticket.future, own)
        else:
            for ticket, key in zip(newcomers, keys, strict=True):
                self._seat(ticket, key)

    def _seat(self, ticket: Ticket, key: int) -> None:
        with self._changed:
            ticket.key = key
            self._rows[key] = ticket
            if ticket.cancelled and ticket not in self._left:
                self._left.append(ticket)

    def _deliver(self, done: FinishedRequest) -> None:
        ticket = self._rows.pop(done.key)
        if done.error is not None:
            _fail(ticket.future, done.error)
        else:
            _settle(ticket.future, done.answer)

    def _fail_rows(self, batch: ContinuousBatch, error: Exception) -> None:
        batch.clear()
        rows, self._rows = self._rows, {}
        for ticket in rows.values():
            _fail(ticket.future, error)


def _code_together(
    jobs: Sequence[_Coding[Given, Result]], work: Callable[[str, Sequence[Given]], Sequence[Result]]
) -> None:
    """Encode or decode what waits, at most `CODED_AT_ONCE` of a medium at a time."""
    media: dict[str, list[_Coding[Given, Result]]] = {}
    for job in jobs:
        if job.future.set_running_or_notify_cancel():  # False: its request has gone
            media.setdefault(job.modality, []).append(job)
    for modality, alike in media.items():
        for start in range(0, len(alike), CODED_AT_ONCE):
            together = alike[start : start + CODED_AT_ONCE]
            try:
                results = work(modality, [job.item for job in together])
            except Exception:  # one of them is at fault: each by itself
                for job in together:
                    _settle_with(job.future, partial(_code_one, work, modality, job.item))
            else:
                for job, result in zip(together, results, strict=True):
                    _settle(job.future, result)


def _code_one(work: Callable[[str, Sequence[Given]], Sequence[Result]], modality: str, item: Given) -> Result:
    [result] = work(modality, [item])
    return result


def _settle_with(future: Future[Result], work: Callable[[], Result]) -> None:
    """Give a future what the work returns or raises."""
    try:
        result = work()
    except Exception as error:
        _fail(future, error)
    else:
        _settle(future, result)


def _settle(future: Future[Result], result: Result) -> None:
    """Give a future its result, unless it has one or its request has gone."""
    with suppress(InvalidStateError):
        future.set_result(result)


def _fail(future: Future[Result], error: Exception) -> None:
    """Give a future its error, unless it has a result or its request has gone."""
    with suppress(InvalidStateError):
        future.set_exception(error)

"""The one thread that touches the model: media into codes, codes into media, and the steps of the running batch.

Other threads hand in jobs and get futures. In each turn the worker codes all media that wait, of one kind together,
lets waiting requests join the batch and goes one step on. A job that fails takes no other with it: what failed together
is tried one by one, and a failed step fails the rows that were in it and leaves an empty batch.

Shapes: N codes, G groups.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any

from unimodal.pipeline import Unimodal
from unimodal.pipeline.rows import ContinuousBatch, Finished, Request

log = logging.getLogger("unimodal.serve")

CODED_AT_ONCE = 16
MOST_PROMPT_TOKENS = 4096  # read in one turn, padding included; a larger request joins alone


@dataclass(eq=False)
class Ticket:
    """A request on its way: `future` gives the answer's ids."""

    request: Request
    future: Future[list[int]] = field(default_factory=Future)
    key: int | None = None  # once it has a row
    cancelled: bool = False


@dataclass(eq=False)
class _Job:
    kind: tuple[str, str]  # ("encode" or "decode", modality), or ("call", "")
    item: Any
    future: Future[Any] = field(default_factory=Future)


class Worker:
    """`start` it, and `stop` it. All other methods may be called from any thread."""

    def __init__(
        self, model: Unimodal, max_batch: int, on_turn: Callable[[float, int, int], None] = lambda *_: None
    ) -> None:
        """on_turn is told of every step: its seconds, the rows in it, the requests that wait for one."""
        self.model, self.max_batch, self.on_turn = model, max_batch, on_turn
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._jobs: deque[_Job] = deque()
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

    def submit(self, request: Request) -> Ticket:
        ticket = Ticket(request)
        with self._changed:
            self._check_open()
            self._waiting.append(ticket)
            self._changed.notify()
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
        _settle(ticket.future, error=CancelledError())

    def encode(self, modality: str, medium: Any) -> Future[Any]:
        """A medium as the coder reads it → its codes [N] or [N, G]."""
        return self._add(_Job(("encode", modality), medium))

    def decode(self, modality: str, codes: Any) -> Future[Any]:
        """Codes [N] or [N, G] → the medium."""
        return self._add(_Job(("decode", modality), codes))

    def call(self, work: Callable[[], Any]) -> Future[Any]:
        """Anything else that needs the model."""
        return self._add(_Job(("call", ""), work))

    def _add(self, job: _Job) -> Future[Any]:
        with self._changed:
            self._check_open()
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def _check_open(self) -> None:
        if self._stopping:
            raise ShuttingDown("the server is shutting down; try again later")

    # ---- the thread

    def _run(self) -> None:
        batch = ContinuousBatch(self.model.engine)
        while True:
            with self._changed:
                while not (self._stopping or self._waiting or self._jobs or self._left or len(batch)):
                    self._changed.wait()
                if self._stopping:
                    break
                jobs, self._jobs = list(self._jobs), deque()
                left, self._left = self._left, []
            try:
                self._turn(batch, jobs, left)
            except Exception as error:  # a defect of ours: nothing may hang for it
                log.exception("a turn of the worker failed")
                for job in jobs:
                    _settle(job.future, error=error)
                self._fail_rows(batch, error)
        with self._changed:
            unfinished: list[Future[Any]] = [one.future for one in (*self._waiting, *self._rows.values())]
            unfinished += [job.future for job in self._jobs]
            self._waiting.clear()
            self._rows.clear()
            self._jobs.clear()
        for future in unfinished:
            _settle(future, error=ShuttingDown("the server is shutting down; try again later"))

    def _turn(self, batch: ContinuousBatch, jobs: list[_Job], left: list[Ticket]) -> None:
        keys = [ticket.key for ticket in left if ticket.key is not None]
        batch.cancel(keys)
        for key in keys:
            self._rows.pop(key, None)
        self._code(jobs)
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

    def _code(self, jobs: list[_Job]) -> None:
        kinds: dict[tuple[str, str], list[_Job]] = {}
        for job in jobs:
            if job.future.set_running_or_notify_cancel():  # False: its request has gone
                kinds.setdefault(job.kind, []).append(job)
        for (what, modality), together in kinds.items():
            for start in range(0, len(together), CODED_AT_ONCE):
                part = together[start : start + CODED_AT_ONCE]
                if what == "call":
                    for job in part:
                        self._each(job, job.item)
                else:
                    self._code_alike(what, modality, part)

    def _code_alike(self, what: str, modality: str, jobs: list[_Job]) -> None:
        work = getattr(self.model.coder, what)
        try:
            results = work(modality, [job.item for job in jobs])
        except Exception:
            for job in jobs:  # one of them is at fault: each by itself
                self._each(job, partial(_only, work, modality, job.item))
            return
        for job, result in zip(jobs, results, strict=True):
            _settle(job.future, result)

    @staticmethod
    def _each(job: _Job, work: Callable[[], Any]) -> None:
        try:
            result = work()
        except Exception as error:
            _settle(job.future, error=error)
        else:
            _settle(job.future, result)

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
                _settle(newcomers[0].future, error=error)
                return
            for ticket in newcomers:
                try:
                    self._seat(ticket, batch.admit([ticket.request])[0])
                except Exception as own:
                    _settle(ticket.future, error=own)
        else:
            for ticket, key in zip(newcomers, keys, strict=True):
                self._seat(ticket, key)

    def _seat(self, ticket: Ticket, key: int) -> None:
        with self._changed:
            ticket.key = key
            self._rows[key] = ticket
            if ticket.cancelled and ticket not in self._left:
                self._left.append(ticket)

    def _deliver(self, done: Finished) -> None:
        ticket = self._rows.pop(done.key)
        if done.error is not None:
            _settle(ticket.future, error=done.error)
        else:
            _settle(ticket.future, done.answer)

    def _fail_rows(self, batch: ContinuousBatch, error: Exception) -> None:
        batch.clear()
        rows, self._rows = self._rows, {}
        for ticket in rows.values():
            _settle(ticket.future, error=error)


def _only(work: Callable[..., Any], modality: str, item: Any) -> Any:
    return work(modality, [item])[0]


class ShuttingDown(RuntimeError):
    """The server is going; the request was not answered."""


def _settle(future: Future[Any], result: Any = None, error: BaseException | None = None) -> None:
    """Give a future its result, unless it has one or its request has gone."""
    try:
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
    except Exception:  # InvalidStateError: cancelled or settled meanwhile
        pass

"""What is on its way through the worker: requests with the future of their answer, and answers of several rows.

The worker's thread alone touches a `Composing`; a `Ticket` may be cancelled by any thread, through the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

from unimodal.generation.request import Composition, GenerationRequest

Result = TypeVar("Result")
#: the address of who sends the request that is being answered
CLIENT: ContextVar[str] = ContextVar("CLIENT", default="")


class ShuttingDown(RuntimeError):
    """The server is going; the request was not answered."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down; try again later")


class MemoryShort(RuntimeError):
    """There was no memory to go on with; the message says what helps."""


class Accounts:
    """The tokens that each client was given, prompts and answers: who was given the fewest is next (the virtual token
    counter of Sheng et al., OSDI 2024). A client that comes back has no more to its credit than those who waited. The
    caller holds a lock."""

    def __init__(self) -> None:
        self._given: dict[str, int] = {}
        self._now = 0  # what the client had that was chosen last

    def enter(self, client: str, waiting: Iterable[Ticket]) -> None:
        """A request comes; `waiting`: those that wait already."""
        there = {ticket.client for ticket in waiting}
        if client not in there:  # others at or below `_now` who do not wait would be lifted to it, too
            kept = {name: given for name, given in self._given.items() if given > self._now or name in there}
            self._given = {client: self._now} | kept

    def choose(self, waiting: Iterable[Ticket]) -> Ticket:
        """The first request of the client that was given the fewest tokens."""
        return min(waiting, key=lambda ticket: self._given.get(ticket.client, self._now))

    def take(self, ticket: Ticket) -> None:
        """A request has its turn: its prompt is charged."""
        self._now = max(self._now, self._given.get(ticket.client, self._now))
        self.charge(ticket.client, ticket.request.length)

    def charge(self, client: str, tokens: int) -> None:
        self._given[client] = self._given.get(client, self._now) + tokens


@dataclass(eq=False)
class Ticket:
    """A request on its way: `future` gives the answer's ids.

    key: of its row in the batch, once it has one. owner: the answer that this row is a draft of. client: who asked.
    num_charged: tokens of the answer that the client's account has. num_bytes: of keys and values that it may need,
    once known. num_passed: how many who came later went before it, since there was no memory for it.
    """

    request: GenerationRequest
    owner: Composing | None = None
    client: str = ""
    future: Future[list[int]] = field(default_factory=Future)
    key: int | None = None
    cancelled: bool = False
    num_charged: int = 0
    num_bytes: int | None = None
    num_passed: int = 0

    def charge(self, accounts: Accounts, num_written: int) -> None:
        """Charge the client for what is written of its answer."""
        accounts.charge(self.client, num_written - self.num_charged)
        self.num_charged = num_written


class Composing:
    """An answer of several rows that is being written: its composition, and the drafts that it waits for."""

    def __init__(self, ticket: Ticket, composition: Composition[list[int]]) -> None:
        self.ticket, self.composition = ticket, composition
        self.drafts: list[Ticket] = []
        self._begun = False

    @property
    def ready(self) -> bool:
        """Whether all drafts are written, so that it can go on."""
        return all(draft.future.done() for draft in self.drafts)

    def advance(self) -> Sequence[Ticket]:
        """Do the next piece of work; the drafts that it needs then, none after a pause. Raises StopIteration with the
        ids of the answer, and what the composition raises."""
        if self._begun:
            wanted = self.composition.send([draft.future.result() for draft in self.drafts])
        else:
            wanted, self._begun = next(self.composition), True
        self.drafts = [Ticket(request, self, self.ticket.client) for request in wanted]
        return self.drafts


def settle_with(future: Future[Result], work: Callable[[], Result]) -> None:
    """Give a future what the work returns or raises."""
    try:
        result = work()
    except Exception as error:
        fail(future, error)
    else:
        settle(future, result)


def settle(future: Future[Result], result: Result) -> None:
    """Give a future its result, unless it has one or its request has gone."""
    with suppress(InvalidStateError):
        future.set_result(result)


def fail(future: Future[Result], error: Exception) -> None:
    """Give a future its error, unless it has a result or its request has gone."""
    with suppress(InvalidStateError):
        future.set_exception(error)

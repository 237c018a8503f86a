"""What is on its way through the worker: requests with the future of their answer, and answers of several rows.

The worker's thread alone touches a `Composing`; a `Ticket` may be cancelled by any thread, through the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from unimodal.generation.request import Composition, GenerationRequest

Result = TypeVar("Result")


class ShuttingDown(RuntimeError):
    """The server is going; the request was not answered."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down; try again later")


@dataclass(eq=False)
class Ticket:
    """A request on its way: `future` gives the answer's ids.

    key: of its row in the batch, once it has one. owner: the answer that this row is a draft of.
    """

    request: GenerationRequest
    owner: Composing | None = None
    future: Future[list[int]] = field(default_factory=Future)
    key: int | None = None
    cancelled: bool = False


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
        self.drafts = [Ticket(request, self) for request in wanted]
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

"""Requests whose long prompts are read a slice at a time, between the steps of the rows.

The worker's thread alone uses it.
"""

from __future__ import annotations

from collections.abc import Sequence

from unimodal.generation.continuous import ContinuousBatch
from unimodal.serve.tickets import Ticket

SLICE, SLICE_BESIDE_ROWS = 1024, 256  # tokens that are read in one turn


class LongPrompts:
    """tickets: those whose prompt is not read yet, in order; a row is kept for each."""

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []

    @staticmethod
    def is_long(ticket: Ticket) -> bool:
        """Whether a prompt is read in slices; under compression it is read whole."""
        return ticket.request.length > SLICE_BESIDE_ROWS and not ticket.request.methods

    def read_slice(self, batch: ContinuousBatch) -> Sequence[Ticket]:
        """Read on in the first prompt; once the rest is no longer than a slice, all tickets of that prompt, which are
        here no longer. What `ContinuousBatch.read_ahead` raises concerns the first ticket."""
        if not self.tickets:
            return []
        first = self.tickets[0].request
        if not batch.read_ahead(first, SLICE_BESIDE_ROWS if len(batch) else SLICE):
            return []
        ready = [ticket for ticket in self.tickets if ticket.request.prompt == first.prompt]
        self.tickets = [ticket for ticket in self.tickets if ticket not in ready]
        return ready

    def remove(self, batch: ContinuousBatch, ticket: Ticket) -> None:
        """Take out one that has gone, if it is here."""
        if ticket in self.tickets:
            if self.tickets[0] is ticket:
                batch.forget_read()
            self.tickets.remove(ticket)

    def clear(self, batch: ContinuousBatch) -> Sequence[Ticket]:
        """Take all out."""
        tickets, self.tickets = self.tickets, []
        batch.forget_read()
        return tickets

"""Requests and drafts that wait for a row of the batch, and who is next.

A draft is a row of an answer that takes several (`Composing`). Where requests and drafts both wait, the kind with fewer
rows goes first, and drafts never have more than half of the rows. So a picture or a text beside a crowd of speech waits
for one row to fall free at most, and speech beside a crowd of pictures is spoken too. Of one kind the client that was
given the fewest tokens goes first, so that many requests of one do not keep the others waiting. The caller holds a
lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from unimodal.serve.tickets import Accounts, Composing, Ticket


class WaitingRows:
    def __init__(self, max_batch: int) -> None:
        self.max_batch = max_batch
        self.most_drafts = max(1, max_batch // 2)
        self.requests: deque[Ticket] = deque()
        self.drafts: deque[Ticket] = deque()
        self.accounts = Accounts()
        self._draft_was_last = False

    def __len__(self) -> int:
        return len(self.requests) + len(self.drafts)

    def find_next(self, num_requests: int, num_drafts: int) -> Ticket | None:
        """Who has the next row beside so many of both kinds; None where nobody waits or there is no room."""
        room = num_requests + num_drafts < self.max_batch
        may_draft = bool(self.drafts) and num_drafts < self.most_drafts
        if not room or not (self.requests or may_draft):
            return None
        draft = num_drafts < num_requests or (num_drafts == num_requests and not self._draft_was_last)
        draft = may_draft and (draft or not self.requests)
        return self.accounts.choose(self.drafts if draft else self.requests)

    def take(self, ticket: Ticket) -> None:
        """Take out the ticket that `find_next` gave."""
        self._draft_was_last = ticket.owner is not None
        (self.requests if ticket.owner is None else self.drafts).remove(ticket)
        self.accounts.take(ticket)

    def remove(self, ticket: Ticket) -> bool:
        """Take out a request that has gone; whether it waited."""
        if ticket not in self.requests:
            return False
        self.requests.remove(ticket)
        return True

    def remove_drafts(self, owner: Composing) -> None:
        self.drafts = deque(draft for draft in self.drafts if draft.owner is not owner)

    def clear(self) -> Sequence[Ticket]:
        """Take all out."""
        tickets = [*self.requests, *self.drafts]
        self.requests.clear()
        self.drafts.clear()
        return tickets

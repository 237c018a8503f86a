"""Requests and drafts that wait for a row of the batch, and who is next.

A draft is a row of an answer that takes several (`Composing`). Where requests and drafts both wait, the kind with fewer
rows goes first, and drafts never have more than half of the rows. So a picture or a text beside a crowd of speech waits
for one row to fall free at most, and speech beside a crowd of pictures is spoken too. Of one kind the client that was
given the fewest tokens goes first, so that many requests of one do not keep the others waiting. The caller holds a
lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from unimodal.serve.cache_budget import MOST_PASSING
from unimodal.serve.tickets import Accounts, Composing, Ticket

MOST_PROMPT_TOKENS = 4096  # read in one turn, padding included; a larger request joins alone
MOST_PROMPT_TOKENS_BESIDE_ROWS = 512


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

    def find_next(
        self, num_requests: int, num_drafts: int, *, fits: Callable[[Ticket], bool] = lambda _: True
    ) -> Ticket | None:
        """Who has the next row beside so many of both kinds; None where nobody waits or there is no room.

        fits: whether there is memory for a ticket.
        """
        room = num_requests + num_drafts < self.max_batch
        may_draft = bool(self.drafts) and num_drafts < self.most_drafts
        if not room or not (self.requests or may_draft):
            return None
        draft = num_drafts < num_requests or (num_drafts == num_requests and not self._draft_was_last)
        draft = may_draft and (draft or not self.requests)
        queue = self.drafts if draft else self.requests
        first = self.accounts.choose(queue)
        if fits(first):
            return first
        others = [ticket for ticket in queue if ticket is not first and fits(ticket)]
        if not others or first.num_passed >= MOST_PASSING:
            return None
        first.num_passed += 1
        return self.accounts.choose(others)

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


class Newcomers:
    """Who joins in this turn. Drafts of one prompt read it once."""

    def __init__(self, ready: Sequence[Ticket], beside_rows: bool) -> None:
        self.tickets = [*ready]
        self.prompts = {tuple(ticket.request.prompt): ticket.request.length for ticket in ready}
        self._most = MOST_PROMPT_TOKENS_BESIDE_ROWS if beside_rows else MOST_PROMPT_TOKENS

    def knows(self, ticket: Ticket) -> bool:
        return tuple(ticket.request.prompt) in self.prompts

    def add(self, ticket: Ticket) -> bool:
        """Let one more join, unless that is too much to read in a turn; whether it joins."""
        grown = self.prompts | {tuple(ticket.request.prompt): ticket.request.length}
        if self.tickets and max(grown.values()) * len(grown) > self._most:
            return False
        self.tickets.append(ticket)
        self.prompts = grown
        return True

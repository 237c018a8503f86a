"""Brings the tokens of a span back that a plan took away for some layers.

A method may shorten a span for a part of the decoder only (token clustering) or choose anew in every layer who skips it
(mixture of depths). Between the two sites other methods may have dropped some of those that stayed: they do not come
back, and what would be made of them is made of the rest.

Shapes: B rows, N tokens now, O tokens when the plan was made, S spans planned together, n tokens of each, m of them
that stayed, D width, P source positions of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unimodal.compression.plan import Plan
from unimodal.compression.running.stream import LiveSpan, SpanGroup, TokenStream


@dataclass(frozen=True, eq=False)
class Departure:
    """A plan whose tokens come back, its spans, and the tokens of the call when it was made."""

    before: TokenStream
    group: SpanGroup
    plan: Plan


def return_tokens(stream: TokenStream, departures: Sequence[Departure]) -> TokenStream:
    """The tokens of a call with those of some plans back in their places; what left last comes back first."""
    for departure in reversed(departures):
        stream = _return_plan(stream, departure)
    return stream


def _return_plan(now: TokenStream, departure: Departure) -> TokenStream:
    before, group, plan = departure.before, departure.group, departure.plan
    assert plan.back is not None
    lines, columns = group.place.rows[:, None], group.place.columns
    width = 1 + max(int(before.place.max()), int(now.place.max()))
    held = torch.zeros(len(now.ids), width + 1, dtype=torch.bool, device=now.ids.device)
    held.scatter_(1, now.place.masked_fill(~now.valid, width), True)[:, width] = False
    stayed = torch.zeros_like(columns, dtype=torch.bool).scatter(1, plan.index, True)  # [S, n]
    comes = (plan.back.taken.sum(-1) > 0) | (plan.back.own != 0)
    returns = torch.zeros_like(before.valid)
    returns[lines, columns] = ~stayed & comes

    places = before.place[lines, columns]  # [S, n]
    at = now.find_columns(group.place.rows, places.gather(1, plan.index))  # [S, m]
    present = held[lines, places.gather(1, plan.index)]
    taken, own = _leave_out(plan.back.taken, plan.back.own, present)
    states = taken.to(now.hidden.dtype) @ now.hidden[lines, at].masked_fill(~present[..., None], 0)
    planned = before.hidden[lines, columns] if plan.back.states is None else plan.back.states
    states = states + own[..., None].to(states.dtype) * planned.to(states.dtype)  # [S, n, D]

    joined = _join(now, before, returns, held, width)
    offset = len(now)
    hidden = joined.hidden.index_put((lines, offset + columns), states)
    seen = present.nonzero(as_tuple=True)  # those that stayed are in their columns of now
    of_stayed = states.gather(1, plan.index[..., None].expand(-1, -1, states.shape[-1]))
    hidden = hidden.index_put((group.place.rows[seen[0]], at[seen]), of_stayed[seen])
    spans = {span.located: span for span in now.spans}
    for span, went in zip(group.spans, ~stayed & comes, strict=True):
        spans[span.located] = _lengthen(spans.get(span.located), span, span.places[went])
    joined = replace(joined, hidden=hidden, spans=list(spans.values()))
    return joined.pick_columns(joined.place.masked_fill(~joined.valid, -1).argsort(dim=1, stable=True), joined.valid)


def _leave_out(taken: Tensor, own: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """The weights [S, n, m] and [S, n] of a return where only some of those that stayed are still present, bool [S, m].

    What a token takes of others it takes of the present ones; one that finds none is what it was.
    """
    left = taken * present[:, None]
    whole, rest = taken.sum(-1), left.sum(-1)
    lost = (whole > 0) & (rest <= 0)
    left = left * torch.where(rest > 0, whole / rest.clamp_min(1e-9), 1.0)[..., None]
    return left, torch.where(lost, 1.0, own)


def _join(now: TokenStream, before: TokenStream, returns: Tensor, held: Tensor, width: int) -> TokenStream:
    """Both streams side by side, [B, N + O]; of the second only the tokens that return, bool [B, O], are valid."""
    count = max(now.positions.shape[-1], before.positions.shape[-1])
    gone = before.valid & ~returns & ~held.gather(1, before.place.clamp(max=width))
    moved = torch.minimum(gone.long().cumsum(1), (now.shift - before.shift)[:, None])  # where others closed the gaps
    old = before.positions - moved[..., None]
    positions = [x.repeat_interleave(count // x.shape[-1], -1) for x in (now.positions, old)]

    def join(one: Tensor | None, other: Tensor | None) -> Tensor | None:
        if one is None and other is None:
            return None
        one = torch.zeros_like(now.valid, dtype=torch.float32) if one is None else one
        other = torch.zeros_like(before.valid, dtype=torch.float32) if other is None else other
        return torch.cat([one, other], 1)

    return replace(
        now,
        hidden=torch.cat([now.hidden, before.hidden], 1),
        ids=torch.cat([now.ids, before.ids], 1),
        place=torch.cat([now.place, before.place], 1),
        valid=torch.cat([now.valid, returns & before.valid], 1),
        positions=torch.cat(positions, 1),
        media=torch.cat([now.media, before.media], 1),
        evictable=torch.cat([now.evictable, before.evictable], 1),
        log_size=join(now.log_size, before.log_size),
        changed=join(now.changed, before.changed),
        gates=None,  # they were those of the layer before, as feeds were
        feeds=None,
        blocks=None if now.blocks is None or before.blocks is None else torch.cat([now.blocks, before.blocks], 1),
    )


def _lengthen(now: LiveSpan | None, before: LiveSpan, places: Tensor) -> LiveSpan:
    """A span with the tokens of `places` int64 in it again; `now` is what was left of it, if anything."""
    located = before.located
    whole = places if now is None else torch.cat([now.places, places])
    whole = whole.sort().values
    edges = torch.tensor(located.segments).cumsum(0)
    order = torch.tensor(located.columns)
    runs = torch.bucketize(torch.searchsorted(order, whole.cpu()), edges, right=True).bincount(minlength=len(edges))
    return LiveSpan(located, whole, tuple(int(n) for n in runs if n))

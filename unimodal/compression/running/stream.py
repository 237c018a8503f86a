"""The tokens of one call on their way through the layers, to which plans are applied.

Rows lose different numbers of tokens. The rest of a row is aligned on the right, with padding on the left, so that the
last column is every row's last token and causality is the order of columns. `place` is the column that a token came
from: the caller gets states back in those columns, and zeros for dropped tokens.

Shapes: B rows, N tokens of the call or now, S spans planned together, M tokens of a span that go on, D width, P source
positions of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import lcm

import torch
from torch import Tensor

from unimodal.compression.plan import Plan, SpanPlace
from unimodal.compression.running.slots import Slots
from unimodal.compression.running.spans import WORDS, LocatedSpan


@dataclass(frozen=True, eq=False)
class LiveSpan:
    """A span in its present state: as it was read, the places of its remaining tokens, and its code runs now."""

    located: LocatedSpan
    places: Tensor  # int64 [N], on the device
    segments: tuple[int, ...]  # the lengths of the runs, N in all

    def __len__(self) -> int:
        return len(self.places)

    def take(self, kept: Tensor) -> LiveSpan:
        """The span with the tokens of kept int64 [M] only, ascending; a run that is gone is none."""
        edges = torch.tensor(self.segments).cumsum(0)
        runs = torch.bucketize(kept.cpu(), edges, right=True).bincount(minlength=len(edges))
        return LiveSpan(self.located, self.places[kept], tuple(int(n) for n in runs if n))


@dataclass(frozen=True, eq=False)
class SpanGroup:
    """Spans of one kind that keep the same number of tokens: a method plans them together."""

    spans: list[LiveSpan]
    count: int  # tokens that each keeps
    place: SpanPlace


@dataclass(eq=False)
class TokenStream:
    """The tokens of a call, as they come to the next layer.

    place: the columns of the call that they came from. media: which are codes of input spans. evictable: which a cache
    method may drop. shift: how many positions later tokens move back. plain: no padding and no sizes. changed: summed
    transitions (TransPrune). gates: factors of what the feed-forward of the coming layer adds (p-MoD). has_moved: some
    token is no longer in its own column. blocks: see `CallInput`. feeds: which of `feed_forwards` takes the place of
    the coming layer's feed-forward, from 1 on; 0: none does (ACM).
    """

    hidden: Tensor  # [B, N, D]
    ids: Tensor  # int64 [B, N]
    place: Tensor  # int64 [B, N]
    valid: Tensor  # bool [B, N]
    positions: Tensor  # int64 [B, N, P]
    media: Tensor  # bool [B, N]
    evictable: Tensor  # bool [B, N]
    shift: Tensor  # int64 [B]
    spans: list[LiveSpan]
    plain: bool
    log_size: Tensor | None = None  # [B, N]
    changed: Tensor | None = None  # [B, N]
    gates: Tensor | None = None  # [B, N]
    has_moved: bool = False
    blocks: Tensor | None = None  # int64 [B, N]
    feeds: Tensor | None = None  # int64 [B, N]
    feed_forwards: tuple[Callable[[Tensor], Tensor], ...] = ()

    @classmethod
    def begin(
        cls,
        hidden: Tensor,
        ids: Tensor,
        valid: Tensor,
        positions: Tensor,
        found: Sequence[LocatedSpan],
        evictable: Tensor,
        blocks: Tensor | None = None,
    ) -> TokenStream:
        """A call's tokens as they come: hidden [B, N, D], ids, valid, positions and evictable [B, N]."""
        num_rows, num = ids.shape
        media = torch.zeros_like(valid)
        spans = []
        for located in found:
            columns = torch.tensor(located.columns, device=ids.device)
            media[located.row, columns] = located.modality != WORDS
            spans.append(LiveSpan(located, columns, located.segments))
        place = torch.arange(num, device=ids.device).expand(num_rows, num)
        shift = torch.zeros(num_rows, dtype=torch.int64, device=ids.device)
        plain = bool(valid.all())
        places = positions[..., None]
        stream = cls(hidden, ids, place, valid, places, media, evictable, shift, spans, plain, blocks=blocks)
        padded_behind = not stream.plain and bool((valid[:, :-1] & ~valid[:, 1:]).any())
        return stream._take(valid) if padded_behind else stream

    def __len__(self) -> int:
        return self.ids.shape[1]

    @cached_property
    def slots(self) -> Slots:
        """These tokens as slots of a cache; one object, which the layers share until a plan changes the tokens."""
        sizes = None if self.log_size is None else self.log_size[:, None]
        first = self.positions[:, None, :, 0]
        return Slots(self.valid, first, self.evictable[:, None], self.shift, sizes, self.plain)

    def find_columns(self, rows: Tensor, places: Tensor) -> Tensor:
        """The present columns of tokens, int64 [S, N]: rows int64 [S], places int64 [S, N]."""
        width = int(self.place.max()) + 1
        where = self.place.new_zeros(len(self.place), width)
        now = torch.arange(len(self), device=where.device).expand_as(self.place)
        # a place may also be named by a column that is padding now: valid tokens are written, padding goes to a bin
        where = torch.cat([where, where[:, :1]], 1)
        where.scatter_(1, self.place.masked_fill(~self.valid, width), now)
        return where[rows].gather(1, places)

    def find_places(self, spans: Sequence[LiveSpan]) -> SpanPlace:
        """The present places of spans with the same number of tokens."""
        rows = torch.tensor([span.located.row for span in spans], device=self.ids.device)
        ends = torch.tensor([[span.located.end] for span in spans], device=self.ids.device)
        columns = self.find_columns(rows, torch.stack([span.places for span in spans]))
        whole = torch.tensor([span.located.columns for span in spans], device=self.ids.device)
        return SpanPlace(rows, columns, self.find_columns(rows, ends)[:, 0], whole)

    def group_spans(self, spans: Sequence[tuple[LiveSpan, int]]) -> Iterator[SpanGroup]:
        """(span, count to keep) → groups of one modality, one layout, one length and one count."""
        kinds: dict[tuple[str, tuple[int, ...], int, int], list[LiveSpan]] = {}
        for span, count in spans:
            kinds.setdefault((span.located.modality, span.segments, len(span.located.columns), count), []).append(span)
        for (*_, count), members in kinds.items():
            yield SpanGroup(members, count, self.find_places(members))

    def apply_plans(self, plans: Sequence[tuple[SpanGroup, Plan]], compacts: bool) -> TokenStream:
        """Apply the plans of groups. compacts: count positions again without the dropped tokens."""
        hidden, positions, log_size, gates = self.hidden, self.positions, self.log_size, self.gates
        feeds, feed_forwards = self.feeds, self.feed_forwards
        keep = self.valid.clone()
        after = {span: span for span in self.spans}
        for group, plan in plans:
            index, columns = plan.index, group.place.columns
            assert index.shape[1] < 2 or bool((index[:, 1:] > index[:, :-1]).all()), "a plan's index must ascend"
            lines = group.place.rows[:, None]
            chosen = columns.gather(1, index)  # [S, M]
            keep[lines, columns] = False
            keep[lines, chosen] = True
            if plan.states is not None or plan.merge is not None:
                states = plan.states
                if states is None:
                    assert plan.merge is not None
                    states = plan.merge.to(hidden.dtype) @ hidden[lines, columns]
                hidden = hidden.index_put((lines, chosen), states.to(hidden.dtype))
            if plan.sizes is not None:
                old = log_size if log_size is not None else hidden.new_zeros(keep.shape, dtype=torch.float32)
                log_size = old.index_put((lines, chosen), plan.sizes.float().log())
            if plan.members is not None:
                positions = share_positions(positions, lines, columns, chosen, plan.members)
            if plan.gates is not None:
                gates = hidden.new_ones(keep.shape) if gates is None else gates
                gates = gates.index_put((lines, chosen), plan.gates.to(gates.dtype))
            if plan.feed_forward is not None:
                feed_forwards = (*feed_forwards, plan.feed_forward)
                feeds = torch.zeros_like(self.ids) if feeds is None else feeds
                feeds = feeds.index_put((lines, chosen), torch.full_like(chosen, len(feed_forwards)))
            for span, kept in zip(group.spans, index, strict=True):
                after[span] = span.take(kept)
        shift = self.shift
        if compacts:
            gone = (self.valid & ~keep).long().cumsum(1)  # [B, N]
            positions = positions - gone[..., None]
            shift = shift + gone[:, -1]
        spans = [span for span in after.values() if len(span)]
        changed = replace(
            self, hidden=hidden, positions=positions, log_size=log_size, gates=gates, feeds=feeds,
            feed_forwards=feed_forwards, shift=shift, spans=spans,
        )  # fmt: skip
        return changed._take(keep)

    def _take(self, keep: Tensor) -> TokenStream:
        """The tokens of keep bool [B, N] in their order, at the right end of every row."""
        return self.pick_columns(keep.long().argsort(dim=1, stable=True), keep)

    def pick_columns(self, order: Tensor, keep: Tensor) -> TokenStream:
        """The columns in an order, int64 [B, N], at whose end stand the tokens of keep bool [B, N]: only those."""
        counts = keep.sum(1)
        width, fewest = (int(x) for x in torch.stack([counts.max(), counts.min()]))
        width = max(width, 1)
        take = order[:, len(self) - width :]  # [B, width]

        def pick(x: Tensor) -> Tensor:
            wide = take.view(*take.shape, *[1] * (x.ndim - 2)).expand(*take.shape, *x.shape[2:])
            return x.gather(1, wide)

        return replace(
            self,
            hidden=pick(self.hidden),
            ids=pick(self.ids),
            place=pick(self.place),
            valid=pick(keep),
            positions=pick(self.positions),
            media=pick(self.media),
            evictable=pick(self.evictable),
            log_size=None if self.log_size is None else pick(self.log_size),
            changed=None if self.changed is None else pick(self.changed),
            gates=None if self.gates is None else pick(self.gates),
            blocks=None if self.blocks is None else pick(self.blocks),
            feeds=None if self.feeds is None else pick(self.feeds),
            plain=fewest == width and self.log_size is None,
            has_moved=True,
        )

    def put_back(self, hidden: Tensor, num: int) -> Tensor:
        """hidden [B, N now, D] → [B, num, D] with every state in the place its token had, zeros elsewhere."""
        if not self.has_moved:
            return hidden
        states = hidden * self.valid[..., None].to(hidden.dtype)
        spread = hidden.new_zeros(len(hidden), num, hidden.shape[2])
        return spread.scatter(1, self.place[..., None].expand_as(states), states)


def share_positions(positions: Tensor, lines: Tensor, columns: Tensor, chosen: Tensor, members: Tensor) -> Tensor:
    """Positions int64 [B, N, P], with those of merged tokens taken from their members: [B, N, P'].

    A token's P positions each hold for one of P equal sections of the rotary frequencies. Section by section, a merged
    token takes the position that its member has there, so that merging may be repeated: P' is the least common multiple
    of P and of the number of members. lines [S, 1], columns [S, N], chosen [S, M]: the places of the spans' tokens and
    of the merged ones. members: int64 [S, M, number].
    """
    count = lcm(positions.shape[-1], members.shape[-1])
    wide = positions.repeat_interleave(count // positions.shape[-1], -1)
    sources = columns.gather(1, members.flatten(1)).view_as(members)
    sources = sources.repeat_interleave(count // members.shape[-1], -1)  # [S, M, P']
    shared = wide[lines[..., None], sources, torch.arange(count, device=wide.device)]
    return wide.index_put((lines, chosen), shared)

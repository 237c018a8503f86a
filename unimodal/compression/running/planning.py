"""Asks a method for its plans at one site, and applies them to the tokens of a call.

Shapes: B rows, N tokens, S spans planned together, M tokens of a span that go on, D width.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from unimodal.compression.plan import Plan, Span, count_share
from unimodal.compression.running.contracts import OpenMethod, TokenMethod
from unimodal.compression.running.forward_pass import ForwardPass
from unimodal.compression.running.returning import Departure
from unimodal.compression.running.spans import WORDS
from unimodal.compression.running.stream import LiveSpan, SpanGroup, TokenStream


def compress(opened: OpenMethod, method: TokenMethod, stream: TokenStream, call: ForwardPass, site: int) -> TokenStream:
    """The tokens of a call behind the plans of one method for one site."""
    spans = list_spans(method, stream)
    if not spans:
        return stream
    started = _read_clock(stream)
    call.observer.stream = stream
    whole = not method.shortens  # all tokens stay, and are cheaper
    counts = [len(span) if whole else count_share(method.keep, len(span.located.columns)) for span in spans]
    hints: dict[LiveSpan, Tensor] = {}
    if method.judges_rows:
        counts, hints = _judge_rows(method, stream, spans, call, site)
    acts = whole and method.keep < 1
    due = [(span, count) for span, count in zip(spans, counts, strict=True) if count < len(span) or acts]
    plans: list[tuple[SpanGroup, Plan]] = []
    for group in stream.group_spans(due):
        span = _make_span(stream, group, site, call)
        if hints:
            span.hint = torch.cat([hints[member] for member in group.spans])
        plans.append((group, method.plan(span.hidden, span)))
    opened.stats.planning_s += _read_clock(stream) - started
    for group, plan in plans:
        if plan.index.shape[1] and not whole:
            opened.chosen.update(
                {member.located: member.places[i] for member, i in zip(group.spans, plan.index, strict=True)}
            )
        if plan.back is not None:
            assert plan.back.site > site and plan.sizes is None and plan.members is None, "what comes back stays itself"
            call.departed.setdefault(plan.back.site, []).append(Departure(stream, group, plan))
    if plans:
        returns = any(plan.back is not None for _, plan in plans)
        stream = stream.apply_plans(plans, method.positions == "compacted" and not returns)
    return stream


def list_spans(method: TokenMethod, stream: TokenStream) -> list[LiveSpan]:
    """The spans that a method may shorten."""
    named = {*method.modalities, *([WORDS] if method.acts_on_words else [])}
    return [span for span in stream.spans if span.located.modality in named]


def _judge_rows(
    method: TokenMethod, stream: TokenStream, spans: list[LiveSpan], call: ForwardPass, site: int
) -> tuple[list[int], dict[LiveSpan, Tensor]]:
    """Ask a method about all spans of each row together: the count of each span, and hints by span."""
    by_row: dict[int, list[LiveSpan]] = {}
    for live in spans:
        by_row.setdefault(live.located.row, []).append(live)
    counts: dict[LiveSpan, int] = {}
    hints: dict[LiveSpan, Tensor] = {}
    for members in by_row.values():
        groups = [SpanGroup([live], len(live), stream.find_places([live])) for live in members]
        together = [_make_span(stream, group, site, call) for group in groups]
        counts.update(zip(members, method.count_kept(together, call.num_layers), strict=True))
        hints.update(zip(members, method.give_hints(together) or [], strict=False))
    return [counts[live] for live in spans], hints


def _read_clock(stream: TokenStream) -> float:
    if stream.hidden.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def _make_span(stream: TokenStream, group: SpanGroup, site: int, call: ForwardPass) -> Span:
    """A group of spans as a method sees it."""
    located, lines, columns = group.spans[0].located, group.place.rows[:, None], group.place.columns
    sizes = torch.ones_like(columns, dtype=torch.float32)
    if stream.log_size is not None:
        sizes = stream.log_size[lines, columns].exp()
    return Span(
        stream.hidden[lines, columns],
        stream.ids[lines, columns],
        sizes,
        located.modality,
        group.count,
        group.spans[0].segments,
        len(located.columns),
        site,
        call.num_layers,
        observer=call.observer,
        place=group.place,
    )

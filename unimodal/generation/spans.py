"""The segments of a span for `grammar.py`: the rows that each place may take, and the rows that may follow.

Legend: G groups of a tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unimodal.vocabulary import Vocabulary
from unimodal.vocabulary.grid import Grid
from unimodal.vocabulary.patterns import CodePattern

Ranges = tuple[tuple[int, int], ...]  # half-open, ascending, not touching


@dataclass(frozen=True, slots=True)
class SpanSegment:
    """One segment of a span.

    block: None for rows that are no codes (the size of a picture, a mark). count: code steps; None if free. rows: the
    ranges of each group. follow: the mark behind the segment; both: a code or that mark. runs_on: the next segment
    follows without a mark. pattern: in which order its codes are written, where it is not step by step; of a free
    count, `follow` is then the mark behind the last step, `both` a code of the leading group or that mark, and `end`
    what follows all codes.
    """

    block: str | None
    count: int | None
    rows: tuple[Ranges, ...]
    follow: Ranges
    both: Ranges
    runs_on: bool
    pattern: CodePattern | None = None
    end: Ranges = ()


def find_open_span(vocabulary: Vocabulary, prefix: Sequence[int]) -> Sequence[int]:
    """The part of ``prefix`` from the start of the span that it leaves open; empty if it leaves none open."""
    frame = vocabulary.get_control_id("<|frame|>") if vocabulary.has_control("<|frame|>") else None
    for index in range(len(prefix) - 1, -1, -1):
        if vocabulary.is_control(prefix[index]) and prefix[index] != frame:
            return prefix[index:] if vocabulary.find_opened_medium(prefix[index]) else ()
    return ()


def read_open_grid(vocabulary: Vocabulary, span: Sequence[int]) -> Grid | None:
    """The grid of an open span that is written in rows; None for others, and as long as its size is incomplete."""
    modality = vocabulary.find_opened_medium(span[0]) if len(span) else None
    marks = None if modality is None else vocabulary.get_layout(modality).grid
    found = None if marks is None else marks.read_header(span[1:])
    return None if found is None else found[0]


def compile_span(vocabulary: Vocabulary, modality: str, grid: Grid | None = None) -> tuple[SpanSegment, ...]:
    layout = vocabulary.get_layout(modality)
    segments: list[SpanSegment] = []
    if layout.grid is not None:
        marks, (height, width) = layout.grid, grid or layout.grid.grid
        name = layout.segments[0].block
        [block] = vocabulary.group_blocks(name)
        rows = ((block.start, block.start + block.size),)
        nothing: Ranges = ((-1, -1),)  # these run on: no mark follows
        segments = [
            SpanSegment(None, 1, (((row, row + 1),),), nothing, nothing, True)
            for row in marks.make_header((height, width))
        ]
        line = ((marks.end_of_row, marks.end_of_row + 1),)
        segments += [SpanSegment(name, width, (rows,), line, merge_ranges([*rows, *line]), False)] * height
        last, end = ((marks.end_of_grid, marks.end_of_grid + 1),), vocabulary.get_end_id(modality)
        segments.append(SpanSegment(None, 1, (last,), ((end, end + 1),), last, False))
        return tuple(segments)
    for index, segment in enumerate(layout.segments):
        final = index == len(layout.segments) - 1
        mark = vocabulary.get_end_id(modality) if final else vocabulary.get_control_id("<|frame|>")
        groups = tuple(((b.start, b.start + b.size),) for b in vocabulary.group_blocks(segment.block))
        follow = ((mark, mark + 1),)
        runs_on = not final and not layout.segments[index + 1].mark
        pattern = layout.pattern
        if pattern is not None:  # of the only segment
            frame = vocabulary.get_control_id("<|frame|>")
            closed = ((frame, frame + 1),) if segment.count is None else follow
            both = merge_ranges([*groups[pattern.leader], *closed])
            return (SpanSegment(segment.block, segment.count, groups, closed, both, False, pattern, follow),)
        both = merge_ranges([*groups[0], *follow])
        segments.append(SpanSegment(segment.block, segment.count, groups, follow, both, runs_on))
    return tuple(segments)


def merge_ranges(ranges: Sequence[tuple[int, int]]) -> Ranges:
    """Sort ranges and join those that touch."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return tuple(merged)

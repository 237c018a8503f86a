"""Which rows may come next: a state machine for every row of a batch, derived from the vocabulary's span layouts.

    outside a span   text rows | the start of a span that fits | <|end_of_turn|>
    inside a span    exactly the rows of the next code; where a segment may have any length, also what follows it
    behind the last  the frame mark or the end of the span, nothing else

No malformed span can be sampled, and none can be cut off: a span is opened only if the whole of it, and whatever the
answer must still have (its forced medium, its end of turn), fits in the rest of `max_new_tokens`. So every answer ends
with `<|end_of_turn|>` inside its budget.

`list_allowed` gives contiguous `(start, end)` ranges of rows, so that the head can be computed for these rows only.
Equal states give equal ranges: rows of a batch are grouped by comparing them.

Tokens are counted in positions of the sequence: the codes of a step that stand at one summed position
(`vocabulary/positions.py`) are one. Each of them still has its own turn here, with its own group's rows.

Legend: B rows of the batch, G groups of a tokenizer, V rows of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unimodal.generation.request import GenerationConfig
from unimodal.generation.spans import Ranges, SpanSegment, compile_span, find_open_span, merge_ranges, read_open_grid
from unimodal.vocabulary import SpanLayout, Vocabulary
from unimodal.vocabulary.patterns import CodePattern


@dataclass(slots=True)
class RowState:
    """Where one row stands. Made by `Grammar.start`, changed by `Grammar.advance` only."""

    remaining: int  # tokens that may still be written, the end of turn included
    text_tokens: int = 0
    spans: int = 0
    forced_done: bool = False
    finished: bool = False
    modality: str = "text"  # what the next token belongs to: "text" outside spans
    segment: int = 0  # inside a span: the index of the segment
    codes: int = 0  # codes of the segment that are written (steps × G)
    open_limit: int = 0  # the most steps of the span's segment of free length
    steps: int | None = None  # inside a span with a pattern: how many steps it has, once that is said

    def copy(self) -> RowState:
        return replace(self)


class Grammar:
    """The rules of one answer, from its request.

    By default all media may appear; with a forced medium only that one, once. A forced medium must appear before the
    turn can end; "text" forces at least one text token. Limits of codes count code steps of spans of free length.

    prompt: the ids before the answer. A span that they leave open is continued, whatever the request allows; its codes
    in the prompt count against no limit.

    Raises ValueError, with the number of tokens that are needed, for a request that cannot be met.
    """

    def __init__(self, vocabulary: Vocabulary, config: GenerationConfig, prompt: Sequence[int] = ()) -> None:
        known = ("text", *vocabulary.media)
        force, allow = config.force, config.allow
        if allow is None:
            allow = known if force is None else (force,)
        for name in (*allow, *([] if force is None else [force]), *config.min_codes, *config.max_codes):
            if name not in known:
                raise ValueError(f"modality {name!r} is unknown here; this model has {', '.join(known)}")
        self.vocabulary = vocabulary
        self.max_new_tokens = config.max_new_tokens
        self.force = force
        self.allow = frozenset(allow) | ({force} if force else frozenset())
        self.min_text_tokens = max(config.min_text_tokens, int(force == "text"))
        self.max_text_tokens = config.max_new_tokens if config.max_text_tokens is None else config.max_text_tokens
        self._forced_medium = force if force in vocabulary.media else None
        max_spans = config.max_spans
        if max_spans is None:
            max_spans = 1 if self._forced_medium else config.max_new_tokens
        self.max_spans = max_spans
        self._begun = find_open_span(vocabulary, prompt)
        grid = read_open_grid(vocabulary, self._begun) or config.grid
        self._media = [name for name in vocabulary.modalities if name in self.allow and name in vocabulary.media]
        self._end_of_turn = vocabulary.get_control_id("<|end_of_turn|>")
        self._starts = {vocabulary.get_start_id(name): name for name in vocabulary.media}
        self._segments = {name: compile_span(vocabulary, name, grid) for name in vocabulary.media}
        self._groups = {name: len(segments[0].rows) for name, segments in self._segments.items()}
        self._summed = {name: vocabulary.is_summed(name) for name in vocabulary.media}
        self._min_open: dict[str, int] = {}
        self._max_open: dict[str, int] = {}
        for layout in vocabulary.layouts:
            self._set_open_limits(layout, config.min_codes, config.max_codes)
        self._cost = {
            layout.modality: vocabulary.count_span_positions(
                layout.modality, layout.fixed_steps + self._min_open[layout.modality], grid
            )
            for layout in vocabulary.layouts
        }
        self._outside: dict[tuple[bool, bool, tuple[str, ...]], Ranges] = {}
        self._check_feasible()

    def _set_open_limits(self, layout: SpanLayout, min_codes: Mapping[str, int], max_codes: Mapping[str, int]) -> None:
        name, fixed = layout.modality, layout.fixed_steps
        low, high = min_codes.get(name), max_codes.get(name)
        if layout.open_segment is None:
            if (low is not None and low > fixed) or (high is not None and high < fixed):
                raise ValueError(f"{name} always has {fixed} codes in this model; drop min_codes and max_codes for it")
            self._min_open[name] = self._max_open[name] = 0
            return
        self._min_open[name] = 1 if low is None else max(1, low - fixed)
        self._max_open[name] = max(self._min_open[name], self.max_new_tokens) if high is None else high - fixed
        if self._max_open[name] < self._min_open[name]:
            raise ValueError(
                f"{name} needs at least {fixed + self._min_open[name]} codes but max_codes is {high}; raise it"
            )

    def _check_feasible(self) -> None:
        """Raises ValueError, with the number of tokens that are needed, for a request that cannot be met."""
        if "text" not in self.allow and not self._media:
            raise ValueError("allow is empty; allow text or a medium")
        if self.min_text_tokens and ("text" not in self.allow or self.max_text_tokens < self.min_text_tokens):
            raise ValueError(f"at least {self.min_text_tokens} text tokens are asked for but fewer are allowed")
        if self._forced_medium and self.max_spans < 1:
            raise ValueError(f"{self.force} is forced but max_spans is {self.max_spans}; allow at least 1")
        need = self._count_owed(RowState(0)) - self.vocabulary.positions.count(self._begun)
        if self.max_new_tokens < need:
            what = f"{self.force} answer" if self.force else "answer"
            raise ValueError(
                f"max_new_tokens is {self.max_new_tokens} but the {what} takes at least {need}; raise it to {need}"
            )

    # ---- one row

    def start(self) -> RowState:
        """The state before the first token of an answer.

        Raises ValueError if the span that the prompt leaves open is malformed, or its rest does not fit.
        """
        state = RowState(self.max_new_tokens)
        if not self._begun:
            return state
        state.remaining += self.vocabulary.positions.count(self._begun)
        name = self._starts[self._begun[0]]
        forced = name == self._forced_medium
        owed = self._count_owed(state) - (self._cost[name] if forced else 0)
        if state.remaining < self._cost[name] + owed:
            need = self.max_new_tokens + self._cost[name] + owed - state.remaining
            raise ValueError(
                f"max_new_tokens is {self.max_new_tokens} but the rest of the {name} takes {need}; raise it"
            )
        self._open(state, name)
        state.spans = int(forced)
        try:
            for row in self._begun[1:]:
                self.advance(state, row)
        except ValueError as error:
            reason = f"the {name} span that the prompt leaves open is malformed or leaves no room for its end"
            raise ValueError(f"{reason}: {error}") from None
        return state

    def list_allowed(self, state: RowState) -> Ranges:
        """The rows that may come next, as half-open ranges; empty once the turn is over."""
        if state.finished:
            return ()
        if state.modality == "text":
            return self._list_outside(state)
        segment = self._segments[state.modality][state.segment]
        if segment.pattern is not None:
            return self._list_patterned(state, segment, segment.pattern)
        step, group = divmod(state.codes, len(segment.rows))
        if group:
            return segment.rows[group]
        if segment.count is not None:
            return segment.rows[0] if step < segment.count else segment.follow
        if step < self._min_open[state.modality]:
            return segment.rows[0]
        return segment.both if step < state.open_limit else segment.follow

    def _list_patterned(self, state: RowState, segment: SpanSegment, pattern: CodePattern) -> Ranges:
        groups, steps = len(segment.rows), segment.count if state.steps is None else state.steps
        if steps is not None and state.codes == steps * groups:
            return segment.end
        step, group = pattern.find_place(state.codes, groups, steps)
        if steps is not None or group != pattern.leader or step < self._min_open[state.modality]:
            return segment.rows[group]
        return segment.both if step < state.open_limit else segment.follow

    def find_group(self, state: RowState) -> int:
        """The group of the next code of an open span, if a code comes next."""
        segment = self._segments[state.modality][state.segment]
        groups, steps = len(segment.rows), segment.count if state.steps is None else state.steps
        if segment.pattern is None or (steps is not None and state.codes >= steps * groups):
            return state.codes % groups
        return segment.pattern.find_place(state.codes, groups, steps)[1]

    def advance(self, state: RowState, row: int) -> RowState:
        """Take `row` as the next token; change `state` and return it. Raises ValueError if the row is not allowed."""
        row = int(row)
        allowed = self.list_allowed(state)
        if not any(start <= row < end for start, end in allowed):
            raise ValueError(f"row {row} cannot come next in {state.modality}; allowed are {list(allowed)}")
        if state.modality == "text":
            if row in self._starts:
                self._open(state, self._starts[row])
                return state
            state.remaining -= 1
            if row == self._end_of_turn:
                state.finished = True
            else:
                state.text_tokens += 1
            return state
        if not (self._summed[state.modality] and state.codes % self._groups[state.modality]):
            state.remaining -= 1
        segments = self._segments[state.modality]
        segment = segments[state.segment]
        marked = segment.pattern is not None and segment.count is None and state.steps is None
        if marked and segment.pattern is not None and row == segment.follow[0][0]:
            state.steps = segment.pattern.find_place(state.codes, len(segment.rows))[0]
        elif row != (segment.end or segment.follow)[0][0]:
            state.codes += 1
            if segment.runs_on and state.codes == (segment.count or 0) * len(segment.rows):
                state.segment, state.codes = state.segment + 1, 0
        elif state.segment + 1 < len(segments):
            state.segment, state.codes = state.segment + 1, 0
        else:
            state.forced_done |= state.modality == self._forced_medium
            state.modality, state.segment, state.codes, state.steps = "text", 0, 0, None
        return state

    def count_steady(self, state: RowState) -> int:
        """For how many steps `list_allowed` stays the same, whichever rows are drawn; 0 only after the end."""
        if state.finished:
            return 0
        if state.modality == "text":
            return 1
        segment = self._segments[state.modality][state.segment]
        if len(segment.rows) > 1:
            return 1
        sure = segment.count if segment.count is not None else self._min_open[state.modality]
        return max(1, sure - state.codes)

    def count_span_steps(self, state: RowState) -> int:
        """The number of written code steps of the open span; 0 outside spans."""
        if state.modality == "text":
            return 0
        segments = self._segments[state.modality]
        earlier = sum(segment.count or 0 for segment in segments[: state.segment] if segment.block is not None)
        if segments[state.segment].block is None:
            return earlier
        return earlier + state.codes // self._groups[state.modality]

    def is_last_span(self, state: RowState) -> bool:
        """Whether no other span can follow the open one."""
        return state.modality != "text" and state.spans >= self.max_spans

    def count_room(self, state: RowState, most: int) -> int:
        """For how many steps, at most ``most``, `list_allowed` stays the same while ordinary rows are written.

        Ordinary rows are text outside spans and codes inside. 0 if the next row is certain or the answer is over.
        """
        ranges = self.list_allowed(state)
        if not ranges or (len(ranges) == 1 and ranges[0][1] - ranges[0][0] == 1):
            return 0
        ahead, steps = state.copy(), 1
        ordinary = next(
            (row for start, end in ranges for row in (start, end - 1) if not self.vocabulary.is_control(row)), None
        )
        while ordinary is not None and steps < most:
            self.advance(ahead, ordinary)
            if self.list_allowed(ahead) != ranges:
                break
            steps += 1
        return steps

    def find_segment(self, state: RowState) -> tuple[str, int | None] | None:
        """The block name and the length of the next code's segment; None if no code comes next."""
        if state.modality == "text":
            return None
        segment = self._segments[state.modality][state.segment]
        return None if segment.block is None else (segment.block, segment.count)

    def count_lines(self, state: RowState) -> tuple[int, int | None]:
        """How many rows of a picture are left, from the next code's on, and the mark behind each.

        (1, None) for codes that are not written in rows.
        """
        if state.modality == "text" or self.vocabulary.get_layout(state.modality).grid is None:
            return 1, None
        segments = self._segments[state.modality]
        own = segments[state.segment]
        if own.block is None:
            return 1, None
        return sum(segment == own for segment in segments[state.segment :]), own.follow[0][0]

    def _open(self, state: RowState, name: str) -> None:
        """Open a span and set the limit of its segment of free length."""
        forced = name == self._forced_medium and not state.forced_done
        owed = self._count_owed(state) - (self._cost[name] if forced else 0)
        spare = (state.remaining - owed - self._cost[name]) // (1 if self._summed[name] else self._groups[name])
        state.open_limit = min(self._max_open[name], self._min_open[name] + spare)
        state.remaining -= 1
        state.spans += 1
        state.modality, state.segment, state.codes, state.steps = name, 0, 0, None

    def _count_owed(self, state: RowState) -> int:
        """The least number of tokens that the answer must still have: text, the forced medium, the end of turn."""
        owed = 1 + max(0, self.min_text_tokens - state.text_tokens)
        if self._forced_medium and not state.forced_done:
            owed += self._cost[self._forced_medium]
        return owed

    def _list_outside(self, state: RowState) -> Ranges:
        owed = self._count_owed(state)
        pending = self._forced_medium if not state.forced_done else None
        text_owed = state.text_tokens < self.min_text_tokens
        text = (
            "text" in self.allow
            and state.text_tokens < self.max_text_tokens
            and state.remaining > owed - (1 if text_owed else 0)
        )
        starts = []
        for name in self._media:
            forced = name == pending
            if state.spans + (1 if pending is None or forced else 2) > self.max_spans:
                continue
            if state.remaining >= owed + (0 if forced else self._cost[name]):
                starts.append(name)
        key = (text, pending is None and not text_owed, tuple(starts))
        ranges = self._outside.get(key)
        if ranges is None:
            ranges = self._outside[key] = self._make_outside(*key)
        assert ranges, state
        return ranges

    def _make_outside(self, text: bool, end: bool, starts: tuple[str, ...]) -> Ranges:
        ranges = [(rows.start, rows.stop) for rows in self.vocabulary.text_ranges] if text else []
        rows = [self.vocabulary.get_start_id(name) for name in starts] + ([self._end_of_turn] if end else [])
        return merge_ranges([*ranges, *((row, row + 1) for row in rows)])


class GrammarBatch:
    """The grammars and states of B rows, each with its own rules."""

    def __init__(self, grammars: Sequence[Grammar]) -> None:
        self.grammars = list(grammars)
        self.states = [grammar.start() for grammar in self.grammars]

    def __len__(self) -> int:
        return len(self.states)

    @property
    def finished(self) -> np.ndarray:
        """Which rows are finished, bool [B]."""
        return np.array([state.finished for state in self.states], dtype=bool)

    def group_rows(self) -> list[tuple[Ranges, np.ndarray]]:
        """The unfinished rows in groups that may write the same next: (ranges, row numbers int64)."""
        found: dict[Ranges, list[int]] = {}
        for index, (grammar, state) in enumerate(zip(self.grammars, self.states, strict=True)):
            if not state.finished:
                found.setdefault(grammar.list_allowed(state), []).append(index)
        return [(ranges, np.array(rows, dtype=np.int64)) for ranges, rows in found.items()]

    def count_steady(self) -> int:
        """For how many steps every unfinished row is allowed the same; 0 if all are finished."""
        each = zip(self.grammars, self.states, strict=True)
        return min((grammar.count_steady(state) for grammar, state in each if not state.finished), default=0)

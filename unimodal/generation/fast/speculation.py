"""Several tokens a step by one protocol: propose, verify, commit.

A fast decoder is given one row at a time, for a stretch in which the row may write the same (a block of codes, or
text):

    propose   tokens for the model to read: those written and not yet read, and guesses behind them
    verify    the logits behind these → which tokens are written, and which of the tokens read stay in the cache
    commit    called once the written tokens have passed the grammar

All rows read their proposals in one forward, padded to the longest. Rows that the fast decoder does not serve take one
token a step in the same forward. A row that keeps fewer tokens than its neighbours is moved within the cache.

Shapes: S streams, P tokens read, V latest slots of the cache, W tokens whose logits are wanted, K candidate rows, D
width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from unimodal.generation.fast.protocol import LATEST, Draft, FastDecoder, Row, Verdict
from unimodal.generation.grammar import RowState
from unimodal.generation.parts import EngineParts
from unimodal.generation.request import TokenEvent
from unimodal.generation.run import DecodingRun, PreparedBatch
from unimodal.generation.sampling import Sampler
from unimodal.generation.session import GenerationSession
from unimodal.generation.spans import Ranges
from unimodal.vocabulary.positions import unfold


@dataclass
class _Stretch:
    """A row and its decoder, as long as the row may write the same.

    segments: indices of the span's segments in it. allowed: the ranges of rows that may be written.
    """

    modality: str
    segments: range
    allowed: Ranges
    row: Row
    method: FastDecoder
    end_step: int | None  # the code step of the span at which its sampling changes

    def covers(self, state: RowState, allowed: Ranges) -> bool:
        """Whether a row in this state is still in the stretch."""
        if state.modality != self.modality or state.segment not in self.segments:
            return False
        mark = self.row.mark  # None, unless the stretch holds the rows of a picture
        return allowed == self.allowed or (mark is not None and allowed == ((mark, mark + 1),))


class SpeculativeRun(DecodingRun):
    """The loop around a FastDecoder."""

    patience = 1 << 30  # drop finished streams at once: they would be moved within the cache at every step

    def __init__(
        self,
        parts: EngineParts,
        batch: PreparedBatch,
        method: FastDecoder,
        on_token: Callable[[TokenEvent], None] | None = None,
        session: GenerationSession | None = None,
    ) -> None:
        super().__init__(parts, batch, on_token, session)
        self.methods = [method.start_request() for _ in self.configs]
        self.spare, self.keeps_order = method.max_draft + LATEST, method.keeps_order
        self.waiting: list[list[int]] = [[] for _ in self.configs]
        self.stretches: list[_Stretch | None] = [None] * len(self.configs)

    def start(self) -> None:
        super().start()
        self._show_states(self.hidden[:, None], {row: [0] for row in range(len(self.configs))})

    def advance(self) -> None:
        """Run one forward over the proposals of all rows. The first token comes from the prompt's hidden state."""
        self._write_certain_tokens()
        self.drop_finished()
        if self.grammar.finished.all():
            return
        drafts: dict[int, Draft] = {}
        for row, state in enumerate(self.grammar.states):
            if not state.finished:
                drafts[row] = self._propose(row)
        unread = [row for row in drafts if not self.waiting[row] and not self.answers[row]]
        if unread:  # rows whose first token comes from the prompt
            self._draw_first_tokens(unread)
            return
        longest = max(len(draft.ids) for draft in drafts.values())
        hidden = self._read(drafts, longest)  # [S, P, D]
        verdicts = {row: self._verify(row, draft, hidden) for row, draft in drafts.items()}
        self._show_states(hidden, {row: verdict.kept for row, verdict in verdicts.items()})
        self._commit([verdicts[row] for row in self.streams.row_of], longest)

    def _commit(self, verdicts: Sequence[Verdict], longest: int) -> None:
        """Leave in the cache what the verdicts of the streams keep of the `longest` tokens read and of those before."""
        back = max(verdict.forgotten for verdict in verdicts)
        by_stream = []
        for stream, verdict in enumerate(verdicts):
            first = max(0, back + longest - self.decoder.count_read(stream))  # a stream may hold fewer
            kept = [back + number for number in verdict.kept]
            by_stream.append([*range(first, back - verdict.forgotten), *kept])
        if back or any(numbers != list(range(longest)) for numbers in by_stream):
            self.decoder.commit(by_stream, longest + back)

    def _show_states(self, hidden: Tensor, kept: dict[int, list[int]]) -> None:
        """Show the methods that read states those of the kept tokens of the rows. hidden: [S, P, D]."""
        for row, numbers in kept.items():
            if self.methods[row].reads_states and numbers:
                twin = self.streams.unconditional.get(row)
                own = hidden[self.streams.conditional[row], numbers]
                self.methods[row].see(own, None if twin is None else hidden[twin, numbers])

    def _write_certain_tokens(self) -> None:
        """Write tokens without an alternative at once; they wait to be read."""
        for row, (grammar, state) in enumerate(zip(self.grammar.grammars, self.grammar.states, strict=True)):
            while not state.finished:
                only = self.parts.head.select(grammar.list_allowed(state)).only
                if only is None:
                    break
                self.write(row, only)
                self.waiting[row].append(only)
                self.stretches[row] = None

    def _propose(self, row: int) -> Draft:
        grammar, state, config = self.grammar.grammars[row], self.grammar.states[row], self.configs[row]
        allowed, stretch = grammar.list_allowed(state), self.stretches[row]
        step = grammar.count_span_steps(state)
        if (
            stretch is None
            or not stretch.covers(state, allowed)
            or (stretch.end_step is not None and step >= stretch.end_step)
        ):
            stretch = self.stretches[row] = self._begin_stretch(row, allowed)
        view, method = stretch.row, stretch.method
        view.written, view.waiting, view.latest = len(self.answers[row]), self.waiting[row], self._list_latest(row)
        most = (
            method.max_draft if config.pause is None else min(method.max_draft, config.pause - len(self.answers[row]))
        )
        most = most if stretch.end_step is None else min(most, stretch.end_step - step)
        view.room = grammar.count_room(state, max(1, most))
        draft = method.propose(view)
        self.stats.drafted += len(draft.ids) - len(self.waiting[row])
        return draft

    def _begin_stretch(self, row: int, allowed: Ranges) -> _Stretch:
        state, view = self.grammar.states[row], self._make_view(row, allowed)
        medium = "text" if state.modality == "text" else "media"
        own = self.methods[row]
        method = copy.copy(own) if own.serves in ("all", medium) and self.waiting[row] else FastDecoder()
        if not method.spans_lines or view.segment_written:
            view.lines, view.mark = 1, None
        method.begin(view)
        segments = range(state.segment, state.segment + view.lines)
        step = self.grammar.grammars[row].count_span_steps(state)
        alike = None if method.spans_lines else self.configs[row].count_alike(state.modality, step)
        return _Stretch(state.modality, segments, allowed, view, method, None if alike is None else step + alike)

    def _list_latest(self, row: int) -> list[int]:
        latest = self.answers[row][-LATEST:]
        missing = LATEST - len(latest)
        if not missing:
            return latest
        read = unfold(self.prompts[self.streams.conditional[row]][-missing:])
        return [*(row for row in read if row >= 0), *latest]  # without a soft prompt, which nothing is written after

    def _make_view(self, row: int, allowed: Ranges) -> Row:
        grammar, state, config = self.grammar.grammars[row], self.grammar.states[row], self.configs[row]
        vocabulary, segment = self.parts.vocabulary, grammar.find_segment(state)
        candidates = self.parts.head.select(allowed)
        sampler = Sampler([config.find_sampling(state.modality, grammar.count_span_steps(state))], self.parts.device)
        blocks = None if segment is None else vocabulary.group_blocks(segment[0])
        lines, mark = grammar.count_lines(state)
        return Row(
            row, config.seed, state.modality, segment and segment[0], segment and segment[1], len(self.answers[row]),
            state.codes, 1, candidates, sampler, self.parts.pad_id,
            vocabulary.text_range if blocks is None else blocks[grammar.find_group(state)].rows, lines=lines, mark=mark,
            score=partial(self._score, row),
        )  # fmt: skip

    def _draw_first_tokens(self, rows: list[int]) -> None:
        """Draw the first token of these rows from the last hidden state of their prompts."""
        for row in rows:
            stretch = self.stretches[row]
            assert stretch is not None
            view = stretch.row
            logits = self._compute_logits(view, self.hidden[:, None], [0], [0])
            token = view.to_ids(view.draw(view.scale(logits), [0]))[0]
            self.write(row, token)
            self.waiting[row] = [token]
            self.stretches[row] = None

    def _read(self, drafts: dict[int, Draft], longest: int) -> Tensor:
        """Read all proposals in one forward, [S, P, D]; shorter ones are padded at the end, unseen."""
        device, pad = self.hidden.device, self.parts.pad_id
        rows = [drafts.get(row) for row in self.streams.row_of]
        ids = [[*(d.ids if d else []), *[pad] * (longest - (len(d.ids) if d else 0))] for d in rows]
        offsets = visible = None
        if any(d is not None and d.offsets is not None for d in rows):
            own = [d.offsets if d and d.offsets is not None else list(range(len(d.ids) if d else 0)) for d in rows]
            offsets = torch.tensor([[*o, *[0] * (longest - len(o))] for o in own], device=device)
        if any(d is not None and d.visible is not None for d in rows):
            visible = self._join_visible(rows, longest).to(device)
        hidden = self.decoder.step(torch.tensor(ids, device=device), offsets, visible, every=True)
        self.count_forward(longest)
        return hidden

    def _join_visible(self, rows: Sequence[Draft | None], longest: int) -> Tensor:
        """The `visible` masks of the drafts in one, bool [S, P, V]; causal for a draft without one."""
        earlier = max(d.visible.shape[1] - len(d.ids) for d in rows if d is not None and d.visible is not None)
        seen = torch.ones(longest, longest, dtype=torch.bool).tril()
        seen = torch.cat([torch.ones(longest, earlier, dtype=torch.bool), seen], 1).repeat(len(rows), 1, 1)
        for stream, draft in enumerate(rows):
            if draft is not None and draft.visible is not None:
                num, before = len(draft.ids), draft.visible.shape[1] - len(draft.ids)
                seen[stream, :num, earlier - before : earlier + num] = draft.visible
        return seen

    def _compute_logits(self, row: Row, hidden: Tensor, wanted: Sequence[int], steps: Sequence[int]) -> Tensor:
        """The guided logits [W, K] at a row's wanted tokens. hidden: [S, P, D]. steps: code steps ahead of each."""
        index = torch.tensor(list(wanted), device=hidden.device)
        twin = self.streams.unconditional.get(row.index)
        own = hidden[self.streams.conditional[row.index]].index_select(0, index)  # [W, D]
        return self._score(row.index, own, None if twin is None else hidden[twin].index_select(0, index), steps)

    def _score(
        self, row: int, own: Tensor, other: Tensor | None, steps: Sequence[int], head: nn.Module | None = None
    ) -> Tensor:
        """`Scorer` of a row."""
        stretch = self.stretches[row]
        assert stretch is not None
        candidates = stretch.row.candidates
        if other is not None:
            state, config = self.grammar.states[row], self.configs[row]
            step = self.grammar.grammars[row].count_span_steps(state)
            scales = [config.find_guidance(state.modality, step + ahead) for ahead in steps]
            if any(scale != 1.0 for scale in scales):
                column = torch.tensor(scales, device=own.device)[:, None]
                return self.parts.head.compute_guided_logits(own, other, column, candidates, head)
        return self.parts.head.compute_logits(own, candidates, head)

    def _verify(self, row: int, draft: Draft, hidden: Tensor) -> Verdict:
        stretch, state, grammar = self.stretches[row], self.grammar.states[row], self.grammar.grammars[row]
        assert stretch is not None
        view, method = stretch.row, stretch.method
        steps = draft.depths if draft.steps is None else draft.steps
        verdict = method.verify(view, draft, self._compute_logits(view, hidden, draft.wanted, steps))
        self.waiting[row] = verdict.waiting
        self.stats.accepted += verdict.accepted
        for number, token in enumerate(verdict.tokens):
            assert number == 0 or stretch.covers(state, grammar.list_allowed(state)), "written beyond what was allowed"
            self.write(row, token)
            if state.finished:
                break
        view.written = len(self.answers[row])
        method.commit(view, verdict)
        return verdict

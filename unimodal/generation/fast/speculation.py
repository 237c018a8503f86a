"""Several tokens a step behind one protocol: propose, verify, commit.

A fast decoder is given one row at a time while what the row may write stays the same (a block of codes, or text):

    propose   tokens for the decoder to read: what waits to be read, and guesses behind it
    verify    the logits behind them → which tokens are written, which of the tokens read stay in the cache
    commit    the written tokens have passed the grammar

All rows read their proposals in one forward, padded to the longest; rows that no fast decoder serves take one token a
step in the same forward. A row that keeps fewer tokens than its neighbours is moved inside the cache.

Shapes: S streams, P tokens read, V latest slots of the cache, W tokens whose logits are wanted, K candidate rows, D
width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unimodal.generation.grammar import RowState
from unimodal.generation.head import Candidates
from unimodal.generation.parts import EngineParts
from unimodal.generation.request import TokenEvent
from unimodal.generation.run import DecodingRun, PreparedBatch
from unimodal.generation.sampling import Sampler, make_gumbel_noise, make_noise_keys
from unimodal.generation.session import GenerationSession
from unimodal.generation.spans import Ranges
from unimodal.vocabulary import Vocabulary

LATEST = 8  # tokens before the next one that a row shows


@dataclass
class Draft:
    """What one row reads next. ``depths[w]``: how many tokens behind the answer the token lies that `wanted[w]`
    predicts.

    steps are needed only where a written token may be no code (a mark behind a row of a picture): how many codes, and
    not tokens, behind the answer those that are wanted lie. offsets and visible are needed only where the tokens read
    are not one behind the other: positions from the next one on, [P], and bool [P, V] over the last V slots of the
    cache, the P new ones last.
    """

    ids: list[int]
    wanted: list[int]
    depths: list[int]
    offsets: list[int] | None = None
    visible: Tensor | None = None
    steps: list[int] | None = None


@dataclass
class Verdict:
    """What becomes of a draft: tokens to write, in order; which of the tokens read stay in the cache, ascending; and
    the tokens written but not yet read."""

    tokens: list[int]
    kept: list[int]
    waiting: list[int]
    accepted: int = 0  # tokens written that were guesses


@dataclass
class Row:
    """What a fast decoder sees of its row."""

    index: int
    seed: int
    modality: str
    block: str | None  # the name of the block that its codes belong to; None for text
    count: int | None  # the length of that segment, None where it is free
    written: int  # tokens of the answer
    segment_written: int  # codes of the segment
    room: int  # at most so many tokens may be written before what is allowed changes
    candidates: Candidates
    sampler: Sampler
    pad_id: int
    ordinary: range  # rows that leave what is allowed as it is: text rows, or those of the block
    waiting: list[int] = field(default_factory=list)
    latest: list[int] = field(default_factory=list)  # the newest of prompt and answer, at most LATEST
    lines: int = 1  # segments like this one from here on, where a picture is written in rows
    mark: int | None = None  # what is written behind each of those

    def make_noise(self, depths: Sequence[int], salt: int = 0) -> Tensor:
        """Gumbel noise [W, K] of tokens that lie so far behind the answer; with salt 0 the plain loop's own."""
        keys = self._make_keys(depths, salt)
        return make_gumbel_noise(keys.to(self.candidates.ids.device), self.candidates.ids)

    def draw_uniform(self, depths: Sequence[int], salt: int) -> Tensor:
        """Uniform numbers [W] in (0, 1), independent of all noise of another salt."""
        return ((self._make_keys(depths, salt)[:, 0].double() + 0.5) * 2.0**-32).float()

    def scale(self, logits: Tensor) -> Tensor:
        """logits [W, K] after temperature and filters."""
        return self.sampler.scale(logits)

    def draw(self, scores: Tensor, depths: Sequence[int], salt: int = 0) -> Tensor:
        """Candidate indices [W] drawn from scaled logits [W, K] with the noise of their places."""
        return self.sampler.choose(scores, None if self.sampler.all_greedy else self.make_noise(depths, salt))

    def to_ids(self, index: Tensor) -> list[int]:
        """Candidate indices -> rows of the vocabulary."""
        return self.candidates.ids[index].tolist()

    def _make_keys(self, depths: Sequence[int], salt: int) -> Tensor:
        numbers = [self.written + depth + (salt << 32) for depth in depths]
        return make_noise_keys([self.seed] * len(numbers), numbers)


class FastDecoder:
    """The protocol; a subclass is one method. Its fields are the settings, `begin` makes what it keeps for a row.

    lossless: the answers follow the plain loop's distribution. serves: "media", "text" or "all". keeps_order: whether
    the cache holds tokens in the order of the answer. spans_lines: whether a stretch holds all rows of a picture, this
    method writes the marks behind them, and all codes are drawn as the first.
    """

    name = "one by one"
    lossless = True
    serves = "all"
    keeps_order = True
    spans_lines = False

    @property
    def max_draft(self) -> int:
        """Tokens that one proposal is likely to hold at most; what is allowed is asked for so many steps ahead."""
        return 1

    def start_request(self) -> FastDecoder:
        """What answers one request: what it remembers of its answer is its own where that could change the answer."""
        return copy.copy(self)

    def check(self, vocabulary: Vocabulary, modalities: Sequence[str]) -> None:
        """ValueError, in one line, where this method cannot decode what may be written."""

    def learn(self, ids: Sequence[int]) -> None:
        """Be told of a sequence (vocabulary rows) that may well be written again; for methods with a memory."""

    def begin(self, row: Row) -> None:
        """A row enters a stretch in which what is allowed stays the same."""

    def propose(self, row: Row) -> Draft:
        return Draft(row.waiting, [len(row.waiting) - 1], [0])

    def verify(self, row: Row, draft: Draft, logits: Tensor) -> Verdict:
        """logits [W, K] at the wanted tokens."""
        tokens = row.to_ids(row.draw(row.scale(logits), draft.depths))
        return Verdict(tokens, list(range(len(draft.ids))), tokens)

    def commit(self, row: Row, verdict: Verdict) -> None:
        """The tokens are written; ``row`` counts them."""


@dataclass
class _Stretch:
    """A row and its decoder while what the row may write stays the same."""

    modality: str
    segments: range  # of the span
    allowed: Ranges
    row: Row
    method: FastDecoder
    end_step: int | None  # the code step of the span from which on it is drawn otherwise

    def covers(self, state: RowState, allowed: Ranges) -> bool:
        """Whether a row in this state still is in it."""
        if state.modality != self.modality or state.segment not in self.segments:
            return False
        mark = self.row.mark  # None, unless the stretch holds the rows of a picture
        return allowed == self.allowed or (mark is not None and allowed == ((mark, mark + 1),))


class SpeculativeRun(DecodingRun):
    """The loop around a FastDecoder."""

    patience = 1 << 30  # at once: a finished stream would be moved in the cache at every step

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

    def advance(self) -> None:
        """One forward over the proposals of all rows. The first token comes from the prompt's own hidden state."""
        self._write_certain_tokens()
        self.drop_finished()
        if self.grammar.finished.all():
            return
        drafts: dict[int, Draft] = {}
        for row, state in enumerate(self.grammar.states):
            if not state.finished:
                drafts[row] = self._propose(row)
        unread = [row for row in drafts if not self.waiting[row] and not self.answers[row]]
        if unread:  # their prompts end where a choice begins
            self._draw_first_tokens(unread)
            return
        longest = max(len(draft.ids) for draft in drafts.values())
        hidden = self._read(drafts, longest)  # [S, P, D]
        kept: dict[int, list[int]] = {}
        for row, draft in drafts.items():
            verdict = self._verify(row, draft, hidden)
            kept[row] = verdict.kept
        by_stream = [kept[row] for row in self.streams.row_of]
        if any(numbers != list(range(longest)) for numbers in by_stream):
            self.decoder.commit(by_stream, longest)

    def _write_certain_tokens(self) -> None:
        """Tokens without an alternative are written at once, and wait to be read."""
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
        return [*self.prompts[self.streams.conditional[row]][-missing:], *latest] if missing else latest

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
            vocabulary.text_range if blocks is None else blocks[state.codes % len(blocks)].rows, lines=lines, mark=mark,
        )  # fmt: skip

    def _draw_first_tokens(self, rows: list[int]) -> None:
        """Draw the first token of these rows from what the prompts end in; ``hidden`` is still theirs."""
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
        """All proposals in one forward, [S, P, D]; shorter ones are padded behind, where nothing sees it."""
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
        """bool [S, P, V]: what each draft says about the latest slots, causal where it says nothing."""
        earlier = max(d.visible.shape[1] - len(d.ids) for d in rows if d is not None and d.visible is not None)
        seen = torch.ones(longest, longest, dtype=torch.bool).tril()
        seen = torch.cat([torch.ones(longest, earlier, dtype=torch.bool), seen], 1).repeat(len(rows), 1, 1)
        for stream, draft in enumerate(rows):
            if draft is not None and draft.visible is not None:
                num, before = len(draft.ids), draft.visible.shape[1] - len(draft.ids)
                seen[stream, :num, earlier - before : earlier + num] = draft.visible
        return seen

    def _compute_logits(self, row: Row, hidden: Tensor, wanted: Sequence[int], steps: Sequence[int]) -> Tensor:
        """The guided logits [W, K] at the wanted tokens of a row, which predict so many steps ahead; hidden
        [S, P, D]."""
        index = torch.tensor(list(wanted), device=hidden.device)
        states = hidden[self.streams.conditional[row.index]].index_select(0, index)  # [W, D]
        twin = self.streams.unconditional.get(row.index)
        if twin is not None:
            grammar, state = self.grammar.grammars[row.index], self.grammar.states[row.index]
            step, config = grammar.count_span_steps(state), self.configs[row.index]
            scales = [config.find_guidance(row.modality, step + ahead) for ahead in steps]
            if any(scale != 1.0 for scale in scales):
                other = hidden[twin].index_select(0, index)
                column = torch.tensor(scales, device=hidden.device)[:, None]
                return self.parts.head.compute_guided_logits(states, other, column, row.candidates)
        return self.parts.head.compute_logits(states, row.candidates)

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

"""The plain loop: one token a step for every row; of a summed position all codes, one after the other.

While no drawn token can change what is allowed next (inside a block of codes), several steps run without waiting for
the device: their inputs are sent once, and the ids come back together at the end.

Shapes: B rows, R rows of a group that may write the same, S streams, T steps in one go, P waiting tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unimodal.generation.head import Candidates
from unimodal.generation.parts import EngineParts
from unimodal.generation.request import TokenEvent
from unimodal.generation.run import DecodingRun, PreparedBatch
from unimodal.generation.sampling import Sampler, make_noise_keys, sample
from unimodal.generation.session import GenerationSession
from unimodal.generation.spans import Ranges
from unimodal.model.depth_decoder import DepthPass
from unimodal.vocabulary.positions import NOTHING


@dataclass(frozen=True)
class _Group:
    """Rows that draw from the same candidates in the next T steps, and the inputs of these steps."""

    candidates: Candidates
    rows: Tensor  # int64 [R]
    conditional: Tensor | None  # int64 [R], streams; None stands for all of them, in order
    unconditional: Tensor | None  # int64 [R]; None if no row of the group is guided
    scales: Tensor | None  # [T, R, 1]
    guided: list[bool]  # [T], whether a scale of the step is not 1
    sampler: Sampler | None
    keys: Tensor | None  # [T, R, 2]


class PlainRun(DecodingRun):
    """The plain loop.

    waiting: for each step whose tokens are written but not yet read, its ids [B], or [B, G] with summed positions.
    """

    def __init__(
        self,
        parts: EngineParts,
        batch: PreparedBatch,
        on_token: Callable[[TokenEvent], None] | None = None,
        session: GenerationSession | None = None,
    ) -> None:
        super().__init__(parts, batch, on_token, session)
        self.waiting: list[Tensor] = []
        self._passes: dict[tuple[tuple[int, ...], bool], DepthPass] = {}  # of the rows that are at one position

    def advance(self) -> None:
        """Write the next token of every unfinished row; several if the grammars allow the same whatever is drawn."""
        self.drop_finished()
        if self.parts.depth is not None:
            self._write_positions()
            return
        steps = self.count_certain_steps()
        groups = [self._make_group(ranges, rows.tolist(), steps) for ranges, rows in self.grammar.group_rows()]
        choice = any(group.candidates.only is None for group in groups)
        whole = len(groups) == 1 and len(groups[0].rows) == len(self.configs)
        drawn: list[Tensor] = []
        for step in range(steps):
            if choice:
                self.read_waiting()
            if whole:
                column = self._draw(groups[0], step)
            else:
                column = torch.full((len(self.configs),), self.parts.pad_id, device=self.hidden.device)
                for group in groups:
                    column[group.rows] = self._draw(group, step)
            self.waiting.append(column)
            drawn.append(column)
        for ids in torch.stack(drawn).tolist():
            for row, state in enumerate(self.grammar.states):
                if not state.finished:
                    self.write(row, ids[row])

    def _write_positions(self) -> None:
        """Write the next position of every unfinished row: one token, or the codes of a summed position."""
        positions, states = self.parts.vocabulary.positions, self.grammar.states
        self._passes.clear()
        unfinished = [row for row, state in enumerate(states) if not state.finished]
        missing = set(unfinished)
        while missing:
            asked = [(ranges, rows.tolist()) for ranges, rows in self.grammar.group_rows()]
            groups = [(ranges, [row for row in rows if row in missing]) for ranges, rows in asked]
            made = [(self._make_group(ranges, rows, 1), rows) for ranges, rows in groups if rows]
            if any(group.candidates.only is None or any(self.begun[row] for row in rows) for group, rows in made):
                self.read_waiting()
            drawn: dict[int, int] = {}
            for group, rows in made:
                drawn |= zip(rows, self._draw(group, 0, rows).tolist(), strict=True)
            for row in sorted(drawn):
                self.write(row, drawn[row])
                self.begun[row].append(drawn[row])
            missing = {row for row in missing if not states[row].finished and not self._is_whole(row)}
        empty = (self.parts.pad_id, *[NOTHING] * (positions.width - 1))
        column = [empty] * len(self.configs)
        for row in filter(self._is_whole, unfinished):
            column[row] = (*self.begun[row], *[NOTHING] * (positions.width - len(self.begun[row])))
            self.begun[row] = []
        self.waiting.append(torch.tensor(column, dtype=torch.int64, device=self.hidden.device))

    def _is_whole(self, row: int) -> bool:
        """Whether the position that a row has begun has all its codes."""
        begun = self.begun[row]
        return len(begun) == self.parts.vocabulary.positions.count_codes(begun[0])

    def _read_begun(self, rows: list[int], hidden: Tensor, other: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """States [R, D] of the decoder, and of the unconditional streams, → those behind the codes that are begun."""
        begun, depth = [self.begun[row] for row in rows], self.parts.depth
        if depth is None or self.parts.embed is None or not begun[0]:
            return hidden, other
        codes = torch.tensor(begun, dtype=torch.int64, device=hidden.device)  # [R, K]
        key = (tuple(rows), other is not None)
        held = self._passes.get(key)
        if held is None or held.num_read != codes.shape[1] - 1:
            held = self._passes[key] = DepthPass(depth, hidden if other is None else torch.cat([hidden, other]))
        embedded = self.parts.embed(codes[:, held.num_read :])
        states = held.read(embedded if other is None else embedded.repeat(2, 1, 1))[:, -1]
        return (states, None) if other is None else (states[: len(rows)], states[len(rows) :])

    def _make_group(self, ranges: Ranges, rows: list[int], steps: int) -> _Group:
        device = self.hidden.device
        candidates = self.parts.head.select(ranges)
        if candidates.only is not None:
            return _Group(candidates, torch.tensor(rows, device=device), None, None, None, [], None, None)
        states = [self.grammar.states[row] for row in rows]
        configs = [self.configs[row] for row in rows]
        starts = [self.grammar.grammars[row].count_span_steps(state) for row, state in zip(rows, states, strict=True)]
        each = list(zip(configs, states, starts, strict=True))
        sampler = Sampler([c.find_sampling(s.modality, start) for c, s, start in each], device)
        scales = [[c.find_guidance(s.modality, start + step) for c, s, start in each] for step in range(steps)]
        guided = [any(scale != 1.0 for scale in row) for row in scales]
        conditional, unconditional = self.streams.find_branches(rows)
        keys = None
        if not sampler.all_greedy:
            seeds = [config.seed for config in configs]
            written = [len(self.answers[row]) for row in rows]
            numbers = [length + step for step in range(steps) for length in written]
            keys = make_noise_keys(seeds * steps, numbers).to(device).view(steps, len(rows), 2)
        return _Group(
            candidates,
            torch.tensor(rows, device=device),
            None if conditional == list(range(len(self.streams))) else torch.tensor(conditional, device=device),
            torch.tensor(unconditional, device=device) if any(guided) else None,
            torch.tensor(scales, device=device)[..., None] if any(guided) else None,
            guided,
            sampler,
            keys,
        )

    def _draw(self, group: _Group, step: int, rows: list[int] | None = None) -> Tensor:
        """The next token of the group's rows, int64 [R]. rows: given where a summed position may be begun."""
        if group.sampler is None:
            return group.candidates.ids.expand(len(group.rows))
        hidden = self.hidden if group.conditional is None else self.hidden[group.conditional]
        guided = group.guided[step] and group.unconditional is not None
        other = self.hidden[group.unconditional] if guided else None
        if rows is not None:
            hidden, other = self._read_begun(rows, hidden, other)
        if other is not None and group.scales is not None:
            logits = self.parts.head.compute_guided_logits(hidden, other, group.scales[step], group.candidates)
        else:
            logits = self.parts.head.compute_logits(hidden, group.candidates)
        keys = logits if group.keys is None else group.keys[step]
        return sample(logits, group.candidates.ids, group.sampler, keys)

    def read_waiting(self) -> None:
        """Feed the waiting tokens to every stream of their row."""
        if self.waiting:
            ids = self.waiting[0][:, None] if len(self.waiting) == 1 else torch.stack(self.waiting, 1)  # [B, P]
            if self.streams.row_of != list(range(len(self.configs))):
                ids = ids[self.streams.row_of]  # [S, P]
            self.waiting.clear()
            self.hidden = self.decoder.step(ids)
            self.count_forward(ids.shape[1])

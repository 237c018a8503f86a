"""The plain loop: one token a step for every row.

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
    """The plain loop. waiting: for each step whose tokens are written but not yet read, its ids [B]."""

    def __init__(
        self,
        parts: EngineParts,
        batch: PreparedBatch,
        on_token: Callable[[TokenEvent], None] | None = None,
        session: GenerationSession | None = None,
    ) -> None:
        super().__init__(parts, batch, on_token, session)
        self.waiting: list[Tensor] = []

    def advance(self) -> None:
        """Write the next token of every unfinished row; several if the grammars allow the same whatever is drawn."""
        self.drop_finished()
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

    def _draw(self, group: _Group, step: int) -> Tensor:
        """The next token of the group's rows, int64 [R]."""
        if group.sampler is None:
            return group.candidates.ids.expand(len(group.rows))
        hidden = self.hidden if group.conditional is None else self.hidden[group.conditional]
        if group.guided[step] and group.unconditional is not None and group.scales is not None:
            other, scales = self.hidden[group.unconditional], group.scales[step]
            logits = self.parts.head.compute_guided_logits(hidden, other, scales, group.candidates)
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

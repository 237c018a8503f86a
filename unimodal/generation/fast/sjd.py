"""Speculative Jacobi decoding (SJD, arXiv:2410.01699): a window of guesses, each verified in the next pass.

A guess x was drawn from q, the prediction of its place in the last pass. This pass predicts p. The guess is accepted
with probability min(1, p(x) / q(x)). The first refused one is drawn anew from the positive part of p - q, and the
places behind it are guessed from this pass's predictions. So every written token follows p, as in speculative sampling
(arXiv:2211.17192). Greedy decoding accepts a guess if it is the likeliest token.

A memory of earlier sequences (`draft_memory.py`) may know how the last tokens go on; its guesses then replace those of
the last pass. Such a guess has q = 1 and does not depend on the noise of its place, so the rule and the distribution
stay the same whatever is remembered. But which token is drawn does depend on the guess. So an answer adds to a memory
of its own: the same request with the same seed gives the same answer whatever was asked before it or beside it.

A place that enters the window has no prediction yet. By ``initial``, its guess is drawn from the last prediction of
the pass, which is not the authors' but keeps more guesses on small models; or, as in their code, it is any code
("random", q = 1), that of its left neighbour in a row of a picture ("repeat"), or the likeliest one there ("sample");
the first of a row is then any code. The neighbour of several new places is the last one that is not new.

Shapes: n guesses, W places of the pass, K candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from unimodal.generation.fast.draft_memory import DraftMemory
from unimodal.generation.fast.jacobi import chain_draft, check_window, select_guesses
from unimodal.generation.fast.protocol import Draft, FastDecoder, Row, Verdict

# Independent noise for what is drawn at one place: acceptance, the residual, and guesses of one pass.
_ACCEPT, _RESIDUAL, _NEW, _GUESS = 1, 2, 3, 4


@dataclass
class SpeculativeJacobi(FastDecoder):
    """SJD. window: places that are guessed at a time.

    memory: of earlier sequences, which `learn` fills and each answer extends for itself; None guesses from passes only.
    initial: the guess of a new place. columns: block name → codes in a row, for blocks in raster order.
    """

    window: int = 16
    initial: Literal["draw", "random", "repeat", "sample"] = "draw"
    columns: Mapping[str, int] = field(default_factory=dict)
    serves: str = "media"
    memory: DraftMemory | None = field(default=None, repr=False)

    name = "sjd"
    lossless = True
    guesses: list[int] = field(default_factory=list, repr=False)
    drawn_from: list[Tensor] = field(default_factory=list, repr=False)  # q [K] of each guess
    passes: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        check_window(self.name, self.window)
        if self.initial not in ("draw", "random", "repeat", "sample"):
            raise ValueError(f"initial {self.initial!r} is unknown; use draw, random, repeat or sample")

    @property
    def max_draft(self) -> int:
        return self.window + 4

    def learn(self, ids: Sequence[int]) -> None:
        self.memory = self.memory or DraftMemory()
        self.memory.learn(ids)

    def start_request(self) -> SpeculativeJacobi:
        return replace(self, memory=None if self.memory is None else self.memory.branch())

    def begin(self, row: Row) -> None:
        self.guesses, self.drawn_from, self.passes = [], [], 0
        self.first = row.written - row.segment_written  # the place of the segment's first code

    def propose(self, row: Row) -> Draft:
        return chain_draft(row, select_guesses(row, self.guesses, self.window))

    def verify(self, row: Row, draft: Draft, logits: Tensor) -> Verdict:
        self.passes += 1
        num_waiting, num_places = len(row.waiting), len(draft.depths)
        scores = row.scale(logits)
        p = row.sampler.compute_probabilities(scores)  # [W, K]
        num = min(len(self.guesses), num_places)  # one guess past those read may be judged too
        tokens = self._judge(row, p, num)
        accepted = len(tokens)
        if accepted < num:  # refused: drawn from the positive part of p - q, with noise of its own
            tokens.append(row.to_ids(self._draw_residual(row, p[accepted], self.drawn_from[accepted], accepted))[0])
        elif num < num_places:  # the place behind the last guess
            tokens.append(row.to_ids(row.draw(scores[num : num + 1], [num]))[0])
        self._guess_next(row, scores, p, tokens)
        self._recall(row, tokens)
        read = min(len(tokens) - 1, num_places - 1)  # written tokens that were among those read
        return Verdict(tokens, list(range(num_waiting + read)), tokens[-1:], accepted)

    def _judge(self, row: Row, p: Tensor, num: int) -> list[int]:
        """The accepted guesses, from the first on, of the first ``num``; p [W, K]."""
        if not num:
            return []
        q = torch.stack(self.drawn_from[:num])  # [n, K]
        index = torch.tensor([row.candidates.find_index(guess) for guess in self.guesses[:num]], device=p.device)[
            :, None
        ]
        ratio = self._compute_ratio(row, p[:num], q, index)  # [n]
        kept = row.draw_uniform(range(num), _ACCEPT).to(p.device) <= ratio
        return self.guesses[: int(kept.long().cumprod(0).sum())]

    def _compute_ratio(self, row: Row, p: Tensor, q: Tensor, index: Tensor) -> Tensor:
        """The acceptance ratio of each guess, [n]; from 1 on it is always accepted.

        p, q: [n, K]. index: int64 [n, 1], the guesses as indices of candidates.
        """
        return (p.gather(1, index) / q.gather(1, index).clamp_min(1e-30))[:, 0]

    def _draw_residual(self, row: Row, p: Tensor, q: Tensor, place: int) -> Tensor:
        """Draw a candidate index [1] from the positive part of p - q, both [K]."""
        left = (p - q).clamp_min(0)
        left = torch.where(left.sum() > 0, left, p)
        return (left.log() + row.make_noise([place], _RESIDUAL)[0]).argmax()[None]

    def _guess_next(self, row: Row, scores: Tensor, p: Tensor, tokens: list[int]) -> None:
        """Guess the places behind the written ``tokens`` by this pass; new places by `initial`."""
        written = len(tokens)
        places = min(self.window, row.room - written)
        if places <= 0:
            self.guesses, self.drawn_from = [], []
            return
        depths = range(written, written + places)
        source = torch.tensor([min(depth, len(scores) - 1) for depth in depths], device=scores.device)
        self.guesses = row.to_ids(row.draw(scores[source], depths, self._choose_salt()))
        self.drawn_from = list(p[source])
        if self.initial != "draw":
            known = max(0, len(scores) - written)  # guesses that have a prediction
            before = self.guesses[known - 1] if known else tokens[-1]
            for place in range(known, places):
                self.guesses[place] = self._choose_initial(row, scores[-1], before, depths[place])
                self.drawn_from[place] = torch.zeros_like(self.drawn_from[place])
                self.drawn_from[place][row.candidates.find_index(self.guesses[place])] = 1.0

    def _choose_initial(self, row: Row, scores: Tensor, before: int, depth: int) -> int:
        """The guess of a new place. scores [K]: of the last place that is not new, whose token is ``before``."""
        width = self.columns.get(row.block or "", 0)
        begins = width > 0 and (row.written + depth - self.first) % width == 0
        if self.initial == "random" or begins or before not in row.ordinary:
            chance = float(row.draw_uniform([depth], _NEW)[0])
            return row.ordinary[min(int(chance * len(row.ordinary)), len(row.ordinary) - 1)]
        return before if self.initial == "repeat" else row.to_ids(scores.argmax()[None])[0]

    def _recall(self, row: Row, tokens: list[int]) -> None:
        """Replace guesses by those that the memory has behind these tokens, the newest written."""
        if self.memory is None:
            return
        known = self.memory.recall([*row.latest, *tokens], row.ordinary, len(self.guesses))
        for place, guess in enumerate(known):
            self.guesses[place] = guess
            self.drawn_from[place] = torch.zeros_like(self.drawn_from[place])
            self.drawn_from[place][row.candidates.find_index(guess)] = 1.0

    def commit(self, row: Row, verdict: Verdict) -> None:
        if self.memory is not None:
            self.memory.learn([*row.latest[-self.memory.context :], *verdict.tokens])

    def _choose_salt(self) -> int:
        """The salt of the noise of guesses: another one in every pass."""
        return _GUESS + self.passes

"""Coupled speculative Jacobi decoding (arXiv:2510.24211): SJD whose guesses change from pass to pass only if they must.

With fresh noise a place draws another token in every pass even if its prediction hardly changes, and all places behind
it start again. Two couplings of a place's guess with its last one, both of the authors:

    gumbel    the same Gumbel noise in every pass: another token is drawn only if the prediction changes enough
    maximal   the last guess x stays with probability min(1, p(x) / q(x)), else the positive part of p - q is drawn
              from: no two draws from q and p agree more often

A guess still follows its q, since neither looks at what is drawn at other places: the acceptance rule, and with it the
distribution, are SJD's. Under the maximal coupling q is the last pass's p, as in the paper; the authors' code goes on
with the older q where a guess stays, which would no longer be what the guess follows.

Shapes: n guesses, W places of the pass, K candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unimodal.generation.fast.protocol import Row
from unimodal.generation.fast.sjd import SpeculativeJacobi

# Noise of the coupling, of which every pass has its own: which guesses stay, and what is drawn in place of the others.
_STAY, _MOVE = 1 << 16, 1 << 17


@dataclass
class CoupledSpeculativeJacobi(SpeculativeJacobi):
    """SJD with coupled guesses."""

    coupling: Literal["gumbel", "maximal"] = "gumbel"

    name = "coupled-sjd"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coupling not in ("gumbel", "maximal"):
            raise ValueError(f"coupling {self.coupling!r} is unknown; use gumbel or maximal")

    def _choose_salt(self) -> int:
        return 0

    def _guess_next(self, row: Row, scores: Tensor, p: Tensor, tokens: list[int]) -> None:
        written, old, drawn_from = len(tokens), self.guesses, self.drawn_from
        super()._guess_next(row, scores, p, tokens)
        if self.coupling == "maximal":
            for place in range(min(len(old), len(scores)) - written):
                depth = written + place
                if place < len(self.guesses):
                    self.guesses[place] = self._couple(row, old[depth], p[depth], drawn_from[depth], depth)

    def _couple(self, row: Row, guess: int, p: Tensor, q: Tensor, depth: int) -> int:
        """The next guess of a place whose last one was drawn from q, [K]; it follows p."""
        index = row.candidates.find_index(guess)
        if float(row.draw_uniform([depth], _STAY + self.passes)[0]) * float(q[index]) <= float(p[index]):
            return guess
        left = (p - q).clamp_min(0)
        left = torch.where(left.sum() > 0, left, p)
        return row.to_ids((left.log() + row.make_noise([depth], _MOVE + self.passes)[0]).argmax()[None])[0]

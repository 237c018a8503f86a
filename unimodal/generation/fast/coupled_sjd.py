"""Coupled speculative Jacobi decoding (arXiv:2510.24211): SJD whose guesses use the same Gumbel noise in every pass.

With fresh noise a place draws another token in every pass, although its prediction hardly moved, and all the places
behind it start again. With one noise for each place, two passes draw the same token unless the prediction changed for
it, so the window settles. A guess still follows its q, since nothing that q depends on has seen the noise of its place:
the acceptance rule, and with it the distribution, are SJD's.
"""

from __future__ import annotations

from dataclasses import dataclass

from unimodal.generation.fast.sjd import SpeculativeJacobi


@dataclass
class CoupledSpeculativeJacobi(SpeculativeJacobi):
    name = "coupled-sjd"

    def _choose_salt(self) -> int:
        return 0

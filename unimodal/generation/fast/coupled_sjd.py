"""Coupled speculative Jacobi decoding (arXiv:2510.24211): SJD whose guesses use the same Gumbel noise in every pass.

With fresh noise a place draws another token in every pass even if its prediction hardly changes, and all places behind
it start again. With the same noise in every pass, a place draws another token only if its prediction changes enough, so
the window settles. A guess still follows its q, since q does not depend on the noise of its place: the acceptance rule,
and with it the distribution, are SJD's.
"""

from __future__ import annotations

from dataclasses import dataclass

from unimodal.generation.fast.sjd import SpeculativeJacobi


@dataclass
class CoupledSpeculativeJacobi(SpeculativeJacobi):
    name = "coupled-sjd"

    def _choose_salt(self) -> int:
        return 0

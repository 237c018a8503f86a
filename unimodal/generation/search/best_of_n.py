"""Best of N: whole answers with different seeds, and the one that the verifier likes best."""

from __future__ import annotations

from dataclasses import dataclass

from unimodal.generation.request import Composition
from unimodal.generation.search.base import Candidate, Search, Verifier, Writer, rank_answers


@dataclass
class BestOfN(Search):
    """Best of N. n: number of answers."""

    n: int = 8

    def explore(self, writer: Writer, verifier: Verifier) -> Composition[list[Candidate]]:
        if self.n < 1:
            raise ValueError(f"best-of-n of {self.n} answers; give at least 1")
        answers = yield from writer.write([[]] * self.n)
        return (yield from rank_answers(answers, verifier, writer.judged_at_once))

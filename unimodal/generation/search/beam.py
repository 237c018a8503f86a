"""Beam search over ordered codes: the verifier prunes partial answers, stage by stage (arXiv:2604.15453).

At every stage each beam is continued ``expand`` times to a number of codes, the verifier scores the partial answers,
and the best ``beams`` go on. Compared to best-of-N with as many candidates, most tokens of bad answers are never
written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unimodal.generation.request import Composition
from unimodal.generation.search.base import Candidate, Search, Verifier, Writer, check_stages, count_codes, rank_answers


@dataclass
class BeamSearch(Search):
    """Beam search. At each of ``stages`` (numbers of codes) each beam is continued ``expand`` times; ``beams`` stay."""

    beams: int = 2
    expand: int = 4
    stages: Sequence[int] = (4, 16)

    partial = True

    def explore(self, writer: Writer, verifier: Verifier) -> Composition[list[Candidate]]:
        if self.beams < 1 or self.expand < 1:
            raise ValueError(f"a beam search of {self.beams} beams and {self.expand} continuations; give at least 1")
        check_stages(self.stages, count_codes(writer))
        starts: list[list[int]] = [[]] * self.beams
        for stage in self.stages:
            grown = yield from writer.write([start for start in starts for _ in range(self.expand)], stage)
            ranked = yield from rank_answers(grown, verifier, writer.judged_at_once)
            starts = [candidate.answer for candidate in ranked[: self.beams]]
        whole = yield from writer.write([start for start in starts for _ in range(self.expand)])
        return (yield from rank_answers(whole, verifier, writer.judged_at_once))

"""Lookahead search: a partial answer is worth what a whole answer that begins with it is worth (arXiv:2604.15453).

Like beam search, but the verifier sees no partial answers: every continuation is written to its end first. It costs
more, and serves verifiers that cannot judge a coarse picture. All whole answers are candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unimodal.generation.request import Composition
from unimodal.generation.search.base import Candidate, Search, Verifier, Writer, check_stages, count_codes, rank_answers


@dataclass
class Lookahead(Search):
    """Lookahead search. Each beam is continued ``expand`` times to its end; the best ``beams`` are cut to the stage.

    stages: numbers of code steps that answers are cut to.
    """

    beams: int = 1
    expand: int = 4
    stages: Sequence[int] = (4, 16)

    def explore(self, writer: Writer, verifier: Verifier) -> Composition[list[Candidate]]:
        if self.beams < 1 or self.expand < 1:
            raise ValueError(f"a lookahead of {self.beams} beams and {self.expand} continuations; give at least 1")
        check_stages(self.stages, count_codes(writer))
        starts: list[list[int]] = [[]] * self.beams
        whole: dict[tuple[int, ...], Candidate] = {}
        for stage in (*self.stages, None):
            grown = yield from writer.write([start for start in starts for _ in range(self.expand)])
            ranked = yield from rank_answers(grown, verifier, writer.judged_at_once)
            whole.update({tuple(candidate.answer): candidate for candidate in ranked})
            best = sorted(whole.values(), key=lambda candidate: -candidate.score)
            if stage is None:
                break
            prefixes = {tuple(candidate.answer[: 1 + stage * writer.num_groups]): None for candidate in best}
            starts = [list(prefix) for prefix in list(prefixes)[: self.beams]]
        return list(whole.values())

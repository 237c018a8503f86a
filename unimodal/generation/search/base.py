"""The base of all searches: partial answers are continued, and a verifier scores them.

An answer is the ids of one forced medium, its start included; a partial answer stops inside the span. Every candidate
has its own seed, so a search is reproducible. A search is a composition (`generation/composition.py`): candidates are
rows like others, and scores are computed in short pieces between the steps of those rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from unimodal.generation.composition import run_composition
from unimodal.generation.engine import Engine
from unimodal.generation.request import PAUSE, Composition, GenerationConfig, GenerationRequest

SESSION_SIZE = 32  # caches of beginnings that candidates share
#: whole or partial answers (ids) → a score for each; higher is better
Verifier = Callable[[Sequence[list[int]]], Sequence[float]]


@dataclass(frozen=True)
class Candidate:
    answer: list[int]
    score: float


@dataclass
class SearchResult:
    """The best answer, its score, all whole answers that were scored (best first), and the number of tokens written."""

    answer: list[int]
    score: float
    candidates: list[Candidate]
    num_tokens: int


@dataclass
class Writer:
    """Continues partial answers to one prompt. judged_at_once: answers scored in one piece of work; None for all."""

    engine: Engine
    prompt: list[int]
    config: GenerationConfig
    judged_at_once: int | None = None
    num_tokens: int = 0
    _used: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        if self.config.force not in self.engine.vocabulary.media:
            raise ValueError(f"search needs a forced medium, not {self.config.force!r}; ask for an image, say")

    @property
    def num_groups(self) -> int:
        """The codes of a step of the forced medium."""
        vocabulary = self.engine.vocabulary
        return len(vocabulary.group_blocks(vocabulary.get_layout(str(self.config.force)).segments[0].block))

    def take_seeds(self, num: int) -> list[int]:
        """``num`` seeds that no candidate has had yet; the first of all is the request's own."""
        seeds = [self.config.seed + (number << 32) for number in range(self._used, self._used + num)]
        self._used += num
        return seeds

    def write(self, starts: Sequence[list[int]], upto: int | None = None) -> Composition[list[list[int]]]:
        """Continue each partial answer with a seed of its own, to its end or until it has ``upto`` code steps."""
        rows, positions = [], self.engine.vocabulary.positions
        for start, seed in zip(starts, self.take_seeds(len(starts)), strict=True):
            other = self.config.unconditional
            changes = {
                "seed": seed,
                "max_new_tokens": self.config.max_new_tokens - positions.count(start),
                "unconditional": None if other is None else (*other, *start),
                "pause": None if upto is None else 1 + upto * self.num_groups - len(start),
            }
            rows.append(GenerationRequest([*self.prompt, *start], self.config.model_copy(update=changes)))
        new = yield rows
        self.num_tokens += sum(map(len, new))
        return [[*start, *rest] for start, rest in zip(starts, new, strict=True)]


def rank_answers(
    answers: Sequence[list[int]], verifier: Verifier, at_once: int | None = None
) -> Composition[list[Candidate]]:
    """The distinct answers with their scores, best first; of equal scores the earlier first.

    at_once: answers that are scored between two pauses; None for all.
    """
    unique = list({tuple(answer): answer for answer in answers}.values())
    at_once = at_once or max(1, len(unique))
    found: list[Candidate] = []
    for start in range(0, len(unique), at_once):
        if start:
            yield PAUSE
        found += _score(unique[start : start + at_once], verifier)
    return sorted(found, key=lambda candidate: -candidate.score)


def _score(answers: Sequence[list[int]], verifier: Verifier) -> list[Candidate]:
    """Answers with their scores. Raises ValueError if the verifier returns another number of scores."""
    scores = verifier(answers)
    if len(scores) != len(answers):
        raise ValueError(f"the verifier gave {len(scores)} scores for {len(answers)} answers")
    return [Candidate(answer, float(score)) for answer, score in zip(answers, scores, strict=True)]


class Search(ABC):
    """One method of search; its fields are the settings."""

    partial = False  # whether the verifier scores partial answers, for which codes must run from coarse to fine

    def compose(self, writer: Writer, verifier: Verifier) -> Composition[SearchResult]:
        """The best answer to the writer's prompt that this method finds."""
        candidates = yield from self.explore(writer, verifier)
        whole = sorted(candidates, key=lambda candidate: -candidate.score)
        return SearchResult(whole[0].answer, whole[0].score, whole, writer.num_tokens)

    def run(self, engine: Engine, prompt: Sequence[int], config: GenerationConfig, verifier: Verifier) -> SearchResult:
        """Run `compose` at once, by calls of an engine."""
        composition = self.compose(Writer(engine, list(prompt), config), verifier)
        return run_composition(engine, composition, session=engine.open_session(SESSION_SIZE))

    @abstractmethod
    def explore(self, writer: Writer, verifier: Verifier) -> Composition[list[Candidate]]:
        """Write and score whole answers, best first."""


def check_stages(stages: Sequence[int], codes: int) -> None:
    """Raises ValueError unless the stages are ascending numbers of code steps inside a span."""
    if list(stages) != sorted(set(stages)) or not all(0 < stage < codes for stage in stages):
        raise ValueError(f"stages {tuple(stages)} must ascend between 0 and the {codes} codes of the span")


def count_codes(writer: Writer) -> int:
    """The number of code steps of the forced medium. Raises ValueError if it is free."""
    assert writer.config.force is not None
    layout = writer.engine.vocabulary.get_layout(writer.config.force)
    if layout.open_segment is not None or layout.num_marks:
        raise ValueError(f"a {writer.config.force} has no fixed run of codes to search in stages; use best-of-n")
    return layout.fixed_steps

"""What is asked of the engine, what it tells while it works, and what the work was."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from pydantic import Field, field_validator

from unimodal.config import Config
from unimodal.generation.sampling import PLAIN, SamplingConfig


class GenerationConfig(Config):
    """One row's request. ``sampling`` and ``guidance`` are by modality (text, image, audio, video).

    ``unconditional`` is what guidance moves away from, as ids: the prompt with its text dropped, or with a negative
    prompt in its place; it is needed where a guidance is not 1. ``guidance_interval`` limits guidance to the code steps
    ``[first, last)`` of a span. ``force``, ``allow`` and the limits go to the grammar. ``stop`` are sequences of text
    ids that end the answer early; ``pause`` leaves the answer, unfinished, after so many tokens. ``grid`` are the rows
    and columns of pictures, for a model that writes them in rows.
    A row whose guidance may come into play runs two streams from its first token on, text included: name the media that
    it may write in ``allow`` or leave their guidance out.
    """

    max_new_tokens: int = Field(default=256, gt=0)
    force: str | None = None
    allow: tuple[str, ...] | None = None
    seed: int = 0
    sampling: dict[str, SamplingConfig] = {}
    guidance: dict[str, float] = {}
    guidance_interval: dict[str, tuple[int, int]] = {}
    unconditional: tuple[int, ...] | None = None
    min_text_tokens: int = Field(default=0, ge=0)
    max_text_tokens: int | None = None
    max_spans: int | None = None
    min_codes: dict[str, int] = {}
    max_codes: dict[str, int] = {}
    grid: tuple[int, int] | None = None
    stop: tuple[tuple[int, ...], ...] = ()
    pause: int | None = Field(default=None, gt=0)

    @field_validator("guidance")
    @classmethod
    def _check_guidance(cls, guidance: dict[str, float]) -> dict[str, float]:
        for name, scale in guidance.items():
            if name == "text" and scale != 1.0:
                raise ValueError("guidance applies to media tokens; leave text out")
            if scale < 0:
                raise ValueError(f"guidance {scale} of {name} is negative; 1 turns it off")
        return guidance

    @field_validator("guidance_interval")
    @classmethod
    def _check_intervals(cls, intervals: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        for name, (first, last) in intervals.items():
            if not 0 <= first < last:
                raise ValueError(f"guidance_interval {first}..{last} of {name} is empty; give first < last, from 0 on")
        return intervals

    def find_sampling(self, modality: str, step: int) -> SamplingConfig:
        """How code step ``step`` of a span of ``modality`` is drawn; for text, which has no steps, step 0 is given."""
        own = self.sampling.get(modality, PLAIN)
        return own if modality == "text" else own.choose_for_step(step)

    def count_alike(self, modality: str, step: int) -> int | None:
        """For how many steps from code step ``step`` on the sampling stays what it is; None for all that follow."""
        first = 0 if modality == "text" else self.sampling.get(modality, PLAIN).first_codes
        return first - step if step < first else None

    def find_guidance(self, modality: str, step: int) -> float:
        """The guidance of code step ``step`` of a span of ``modality``; 1 for text and outside the interval."""
        scale = 1.0 if modality == "text" else float(self.guidance.get(modality, 1.0))
        if scale != 1.0 and modality in self.guidance_interval:
            first, last = self.guidance_interval[modality]
            return scale if first <= step < last else 1.0
        return scale


@dataclass(frozen=True)
class TokenEvent:
    """One new token: of which row, its number in the answer, its id, and the medium it belongs to (or text)."""

    row: int
    index: int
    id: int
    modality: str
    finished: bool


#: is told of a new token; True ends the answer
OnToken = Callable[[TokenEvent], bool | None]


@dataclass
class GenerationStats:
    """What the last call computed: forwards of the decoder, streams x tokens in the prompt and in the steps."""

    forwards: int = 0
    prompt_tokens: int = 0
    step_tokens: int = 0
    cached_tokens: int = 0  # of the prompts, taken from a session's cache instead of computed
    drafted: int = 0  # tokens that a fast decoder proposed
    accepted: int = 0  # guesses that were kept: of those, and of the one behind them, which a pass may judge unread
    stream_counts: list[int] = field(default_factory=list)  # streams of every forward


@dataclass(frozen=True)
class GenerationRequest:
    """What a row of a `ContinuousBatch` is to answer.

    ``on_token`` is told every token, with the request's key as its row; True from it ends the answer there, and an
    exception in it ends this row alone. ``compose``, where it is given, writes the answer of several rows in place of
    one: a call of (on_token, row) that begins its composition, in ``num_parts`` that are told one after the other.
    """

    prompt: Sequence[int]
    config: GenerationConfig
    on_token: OnToken | None = None
    compose: Callable[[OnToken | None, int], Composition[list[int]]] | None = None
    num_parts: int = 1


ResultT = TypeVar("ResultT")
#: an answer of several rows, as a generator: it yields the rows that it needs and is sent their ids; it yields `PAUSE`
#: between two short pieces of work, so that others may have their turn; it returns what has come of it
Composition: TypeAlias = Generator[Sequence[GenerationRequest], Sequence[list[int]], ResultT]
PAUSE: Sequence[GenerationRequest] = ()


@dataclass(frozen=True)
class FinishedRequest:
    """A row that has left the batch: its answer so far, and what its ``on_token`` raised."""

    key: int
    answer: list[int]
    error: Exception | None = None

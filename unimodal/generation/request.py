"""Requests to the engine, the events that it reports while it works, and the statistics of a call."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from pydantic import Field, field_validator

from unimodal.config import Config
from unimodal.generation.sampling import PLAIN, SamplingConfig

if TYPE_CHECKING:
    from unimodal.compression import Method


MOST_GUIDANCE = 1e6  # so that guided logits stay finite


class GenerationConfig(Config):
    """One row's request.

    sampling, guidance: by modality ("text", "image", …); a guidance of 1 turns it off. guidance_interval: limits
    guidance to the code steps [first, last) of a span. unconditional: ids of the prompt that guidance moves away from,
    the prompt without its text or a negative prompt; needed for a guidance other than 1. force, allow and the limits
    are those of `Grammar`. max_new_tokens counts positions of the sequence, of which one may hold several codes; pause
    counts ids. stop: sequences of text ids that end the answer early. pause: leave the answer unfinished
    after so many tokens. grid: rows and columns of pictures, for a model that writes them in rows.
    A row that may write a guided medium runs two streams from its first token on, in text too: name in ``allow`` the
    media that it may write, or give no guidance for the others.
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
    max_text_tokens: int | None = Field(default=None, ge=0)
    max_spans: int | None = Field(default=None, ge=0)
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
            if not 0 <= scale <= MOST_GUIDANCE:
                raise ValueError(f"guidance {scale} of {name} is outside 0 to {MOST_GUIDANCE:g}; 1 turns it off")
        return guidance

    @field_validator("guidance_interval")
    @classmethod
    def _check_intervals(cls, intervals: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
        for name, (first, last) in intervals.items():
            if not 0 <= first < last:
                raise ValueError(f"guidance_interval {first}..{last} of {name} is empty; give first < last, from 0 on")
        return intervals

    def find_sampling(self, modality: str, step: int) -> SamplingConfig:
        """The sampling of code step ``step`` of a span of ``modality``; text has step 0 only."""
        own = self.sampling.get(modality, PLAIN)
        return own if modality == "text" else own.choose_for_step(step)

    def count_alike(self, modality: str, step: int) -> int | None:
        """For how many code steps from ``step`` on the sampling stays the same; None for all that follow."""
        first = 0 if modality == "text" else self.sampling.get(modality, PLAIN).first_codes
        return first - step if step < first else None

    def find_guidance(self, modality: str, step: int) -> float:
        """The guidance at code step ``step`` of a span of ``modality``; 1 for text and outside the interval."""
        scale = 1.0 if modality == "text" else float(self.guidance.get(modality, 1.0))
        if scale != 1.0 and modality in self.guidance_interval:
            first, last = self.guidance_interval[modality]
            return scale if first <= step < last else 1.0
        return scale


@dataclass(frozen=True)
class TokenEvent:
    """One new token: its row, its number in the answer, its id, and its modality ("text", "image", …).

    finished: whether it is the last of the answer.
    """

    row: int
    index: int
    id: int
    modality: str
    finished: bool


#: called with each new token; returning True ends the answer
OnToken = Callable[[TokenEvent], bool | None]


@dataclass(frozen=True)
class CompressionEvent:
    """What compression left of the prompt of a row: of its tokens those that the cache holds, the mean over layers."""

    row: int
    num_tokens: int
    num_kept: int


#: called once a prompt is read with compression
OnCompressed = Callable[[CompressionEvent], None]


@dataclass
class GenerationStats:
    """What the last call computed. prompt_tokens, step_tokens: summed over streams."""

    forwards: int = 0
    prompt_tokens: int = 0
    step_tokens: int = 0
    cached_tokens: int = 0  # prompt tokens taken from a session's cache
    drafted: int = 0  # tokens that a fast decoder proposed
    accepted: int = 0  # accepted guesses; may include one guess past the drafted tokens, judged before it was read
    stream_counts: list[int] = field(default_factory=list)  # streams of every forward


@dataclass(frozen=True)
class GenerationRequest:
    """A request to a `ContinuousBatch`.

    on_token: called with each token, whose row is the request's key; True ends the answer there, an exception ends this
    row alone. compose: (on_token, row) → a composition that writes the answer with several rows in place of one, in
    ``num_parts`` parts whose tokens are reported one part after the other. methods: the prompt is read under these
    methods of compression; on_compressed is told what they left. num_read: tokens of the prompt that are about to be
    kept, where it is known; None: all.
    """

    prompt: Sequence[int]
    config: GenerationConfig
    on_token: OnToken | None = None
    compose: Callable[[OnToken | None, int], Composition[list[int]]] | None = None
    num_parts: int = 1
    methods: tuple[Method, ...] = ()
    on_compressed: OnCompressed | None = None
    num_read: int | None = None

    @property
    def length(self) -> int:
        """The tokens of the prompt that take room."""
        return len(self.prompt) if self.num_read is None else self.num_read


ResultT = TypeVar("ResultT")
#: an answer of several rows as a generator: it yields requests for rows and is sent their ids; it yields `PAUSE`
#: between two short pieces of work, so that others get their turn; it returns its result
Composition: TypeAlias = Generator[Sequence[GenerationRequest], Sequence[list[int]], ResultT]
PAUSE: Sequence[GenerationRequest] = ()


@dataclass(frozen=True)
class FinishedRequest:
    """A row that has left the batch: its answer so far; error: the exception of its ``on_token``."""

    key: int
    answer: list[int]
    error: Exception | None = None

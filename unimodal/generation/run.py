"""One call of generate: the streams, the answers so far, and how every decoding loop takes a new token.

Shapes: B rows, S streams, N tokens of a prompt, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from unimodal.generation.grammar import GrammarBatch
from unimodal.generation.guidance import Streams
from unimodal.generation.parts import EngineParts
from unimodal.generation.request import GenerationConfig, GenerationStats, TokenEvent
from unimodal.generation.session import GenerationSession
from unimodal.vocabulary.positions import Position


@dataclass(frozen=True, eq=False)
class PreparedBatch:
    """Requests that have passed every check (`Engine.prepare`).

    prompts: the ids of all S streams: those of the B rows, then the unconditional prompts of the rows numbered in
    ``guided``, in positions of the sequence. configs, grammar: of the B rows. begun: for each row the first codes of a
    summed position that its prompt leaves incomplete.
    """

    prompts: list[list[Position]]
    configs: list[GenerationConfig]
    grammar: GrammarBatch
    guided: list[int]
    begun: list[list[int]]

    @property
    def capacities(self) -> list[int]:
        """The most tokens of each stream, its answer included."""
        row_of = [*range(len(self.configs)), *self.guided]
        return [len(ids) + self.configs[row].max_new_tokens for ids, row in zip(self.prompts, row_of, strict=True)]


class DecodingRun(ABC):
    """A decoding loop: call `start`, then `advance` until every grammar is finished, then `store_caches`.

    spare: slots of the cache that a stream may need beyond its prompt and answer.
    patience: drop finished streams once they are at least 1/patience of all.
    keeps_order: whether the cache holds the tokens in the order of the answer, so that a session can use it.
    """

    spare = 0
    patience = 2
    keeps_order = True

    def __init__(
        self,
        parts: EngineParts,
        batch: PreparedBatch,
        on_token: Callable[[TokenEvent], None] | None = None,
        session: GenerationSession | None = None,
    ) -> None:
        self.parts, self.decoder = parts, parts.decoder
        self.prompts, self.configs, self.grammar = list(batch.prompts), list(batch.configs), batch.grammar
        self.begun, self._first_begun = [list(codes) for codes in batch.begun], batch.begun
        self.on_token, self.session = on_token, session
        #: whether tokens must be reported one at a time, so that several steps cannot run in one go
        self.watched = on_token is not None or any(config.stop for config in batch.configs)
        self.streams = Streams(len(batch.configs), batch.guided)
        self.answers: list[list[int]] = [[] for _ in batch.configs]
        self.stats = GenerationStats()
        self.hidden: Tensor  # [S, D], the states of the last tokens read

    def start(self) -> None:
        """Read the prompts of all streams."""
        longest = max(map(len, self.prompts))
        capacity = longest + max(config.max_new_tokens for config in self.configs) + self.spare
        known = [] if self.session is None else self.session.match(self.prompts)
        prefixes = self.parts.begin_streams(len(self.prompts), known)
        self.hidden = self.decoder.prefill(self.prompts, self.parts.pad_id, capacity, prefixes)
        read = self.decoder.num_computed
        self.stats.cached_tokens = sum(max(0, len(prompt) - read) for prompt in self.prompts)
        self.stats.prompt_tokens = sum(map(len, self.prompts)) - self.stats.cached_tokens
        self.count_forward(0)

    @abstractmethod
    def advance(self) -> None:
        """Write at least one token of every unfinished row."""

    def count_forward(self, num_new: int) -> None:
        """Add a forward over ``num_new`` tokens of every stream to the statistics."""
        self.stats.forwards += 1
        self.stats.stream_counts.append(len(self.streams))
        self.stats.step_tokens += num_new * len(self.streams)

    def drop_finished(self) -> None:
        """Drop the streams of finished rows once there are enough (`patience`), and those past guidance."""
        finished = self.grammar.finished
        alive = sum(not finished[row] for row in self.streams.row_of)
        if alive and self.patience * (len(self.streams) - alive) >= len(self.streams):
            self.store_caches([stream for stream, row in enumerate(self.streams.row_of) if finished[row]])
            self.keep_streams(self.streams.drop_rows(finished.tolist()))
        self.drop_unguided()

    def drop_unguided(self) -> None:
        """Drop unconditional streams once no later token of their row can be guided."""
        finished = self.grammar.finished
        if any(config.guidance_interval for config in self.configs):
            over = [row for row in self.streams.unconditional if not finished[row] and self._is_guidance_over(row)]
            if over:
                self.store_caches([self.streams.unconditional[row] for row in over])
                self.keep_streams(self.streams.drop_twins(over))

    def count_certain_steps(self) -> int:
        """For how many steps, whatever is drawn, no row changes what it may write, its streams or its end."""
        steps = 1 if self.watched else self.grammar.count_steady()
        for row, (grammar, state, config) in enumerate(
            zip(self.grammar.grammars, self.grammar.states, self.configs, strict=True)
        ):
            if state.finished:
                continue
            if config.pause is not None:
                steps = min(steps, config.pause - len(self.answers[row]))
            alike = config.count_alike(state.modality, grammar.count_span_steps(state))
            steps = steps if alike is None else min(steps, alike)
            if state.modality in config.guidance_interval:
                left = config.guidance_interval[state.modality][1] - grammar.count_span_steps(state)
                steps = min(steps, left) if left > 0 else steps
        return steps

    def keep_streams(self, kept: list[int]) -> None:
        """Keep these streams only, in this order."""
        self.decoder.keep(kept)
        self.prompts = [self.prompts[stream] for stream in kept]
        self.hidden = self.hidden[kept]

    def store_caches(self, streams: Sequence[int] | None = None) -> None:
        """Store the caches of these streams, by default of all, in the session, if there is one."""
        if self.session is None or not self.keeps_order:
            return
        for stream in range(len(self.streams)) if streams is None else streams:
            row = self.streams.row_of[stream]
            new, _ = self.parts.vocabulary.positions.fold([*self._first_begun[row], *self.answers[row]])
            text = [*self.prompts[stream], *new]
            self.session.store(text[: self.decoder.count_read(stream)], self.decoder.export(stream))

    def write(self, row: int, token: int) -> None:
        """Add one new token of an unfinished row to its answer and grammar, and report it."""
        state, answer, config = self.grammar.states[row], self.answers[row], self.configs[row]
        before = state.modality
        self.grammar.grammars[row].advance(state, token)
        answer.append(token)
        if (before == state.modality == "text" and any(_ends_with(answer, stop) for stop in config.stop)) or (
            len(answer) == config.pause
        ):
            state.finished = True
        if self.on_token is not None:
            modality = state.modality if before == "text" else before
            self.on_token(TokenEvent(row, len(answer) - 1, token, modality, state.finished))

    def _is_guidance_over(self, row: int) -> bool:
        grammar, state, config = self.grammar.grammars[row], self.grammar.states[row], self.configs[row]
        interval = config.guidance_interval.get(state.modality)
        return interval is not None and grammar.is_last_span(state) and grammar.count_span_steps(state) >= interval[1]


def _ends_with(answer: list[int], stop: Sequence[int]) -> bool:
    return len(stop) > 0 and tuple(answer[-len(stop) :]) == tuple(stop)

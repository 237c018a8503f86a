"""One call of generate: the streams, the answers so far, and what every way of decoding does with a new token.

Shapes: B rows, S streams, N tokens of a prompt, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from unimodal.generation.grammar import GrammarBatch
from unimodal.generation.guidance import Streams
from unimodal.generation.request import GenerationConfig, GenerationStats, TokenEvent

if TYPE_CHECKING:
    from unimodal.generation.engine import Engine
    from unimodal.generation.session import GenerationSession


class DecodingRun(ABC):
    """`start`, then `advance` until every grammar is finished, then `remember`."""

    spare = 0  # tokens beyond an answer that the cache must hold
    patience = 2  # finished streams are dropped once they are one of so many
    storable = True  # whether the cache holds the tokens in their order

    def __init__(
        self,
        engine: Engine,
        configs: Sequence[GenerationConfig],
        grammar: GrammarBatch,
        guided: Sequence[int],
        on_token: Callable[[TokenEvent], None] | None,
        session: GenerationSession | None,
    ) -> None:
        self.engine, self.configs, self.grammar, self.on_token = engine, configs, grammar, on_token
        self.session = session
        self.streams = Streams(len(configs), guided)
        self.answers: list[list[int]] = [[] for _ in configs]
        self.stats = GenerationStats()
        self.watched = on_token is not None or any(config.stop for config in configs)
        self.fades = any(config.guidance_interval for config in configs)
        self.hidden: Tensor

    @property
    def decoder(self) -> Any:
        return self.engine.decoder

    def start(self, prompts: list[list[int]]) -> None:
        """Read the prompts of all streams, [S, N]."""
        self.prompts = list(prompts)
        capacity = max(map(len, prompts)) + max(config.max_new_tokens for config in self.configs) + self.spare
        prefixes = None if self.session is None else self.session.match(prompts)
        decoder = self.decoder
        self.hidden = decoder.start(prompts, self.engine.pad_id, capacity, prefixes)  # [S, D]
        self.stats.cached_tokens = sum(max(0, len(prompt) - decoder.computed) for prompt in prompts)
        self.stats.prompt_tokens = sum(map(len, prompts)) - self.stats.cached_tokens
        self.count(0)

    @abstractmethod
    def advance(self) -> None:
        """Write at least one token of every unfinished row."""

    def count(self, num_new: int) -> None:
        self.stats.forwards += 1
        self.stats.stream_counts.append(len(self.streams))
        self.stats.step_tokens += num_new * len(self.streams)

    def drop_finished(self) -> None:
        """Leave the streams of finished rows behind once they are many (one copy, then cheaper steps), and those of
        guidance that is over."""
        finished = self.grammar.finished
        alive = sum(not finished[row] for row in self.streams.row_of)
        if alive and self.patience * (len(self.streams) - alive) >= len(self.streams):
            self.remember([stream for stream, row in enumerate(self.streams.row_of) if finished[row]])
            self._go_on_with(self.streams.drop_rows(finished.tolist()))
        self.drop_faded()

    def drop_faded(self) -> None:
        """Leave second streams behind once no later token of their row can be guided."""
        finished = self.grammar.finished
        if self.fades:
            over = [row for row in self.streams.unconditional if not finished[row] and self._guidance_is_over(row)]
            if over:
                self.remember([self.streams.unconditional[row] for row in over])
                self._go_on_with(self.streams.drop_twins(over))

    def unasked_steps(self) -> int:
        """For how many steps, whatever is drawn, no row changes what it may write, its streams or its end."""
        steps = 1 if self.watched else self.grammar.steady()
        for row, (grammar, state, config) in enumerate(
            zip(self.grammar.grammars, self.grammar.states, self.configs, strict=True)
        ):
            if state.finished:
                continue
            if config.pause is not None:
                steps = min(steps, config.pause - len(self.answers[row]))
            if state.modality in config.guidance_interval:
                left = config.guidance_interval[state.modality][1] - grammar.span_step(state)
                steps = min(steps, left) if left > 0 else steps
        return steps

    def _guidance_is_over(self, row: int) -> bool:
        grammar, state, config = self.grammar.grammars[row], self.grammar.states[row], self.configs[row]
        interval = config.guidance_interval.get(state.modality)
        return interval is not None and grammar.last_span(state) and grammar.span_step(state) >= interval[1]

    def _go_on_with(self, kept: list[int]) -> None:
        self.decoder.keep(kept)
        self.prompts = [self.prompts[stream] for stream in kept]
        self.hidden = self.hidden[kept]

    def remember(self, streams: Sequence[int] | None = None) -> None:
        """Give the caches of these streams, by default of all, to the session."""
        if self.session is None or not self.storable:
            return
        decoder = self.decoder
        for stream in range(len(self.streams)) if streams is None else streams:
            text = [*self.prompts[stream], *self.answers[self.streams.row_of[stream]]]
            self.session.store(text[: decoder.num_read(stream)], decoder.export(stream))

    def write(self, row: int, token: int) -> None:
        """Take one new token of an unfinished row into its answer and grammar; tell the caller."""
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


def _ends_with(answer: list[int], stop: Sequence[int]) -> bool:
    return len(stop) > 0 and tuple(answer[-len(stop) :]) == tuple(stop)

"""A batch that requests join and leave between steps, so that none waits for the longest of another's neighbours.

    batch = ContinuousBatch(engine)
    [key] = batch.admit([GenerationRequest(prompt, config)])
    while len(batch):
        for done in batch.advance_rows():
            ...  # done.key, done.answer

The step is that of `plain.py`, over a decoder whose streams come and go (`slots.py`). Rows keep their own grammar,
sampling, guidance and seed, and noise belongs to the row, so an answer is the one that `Engine.generate` gives alone,
whenever its row joins and whoever its neighbours are. One thread at a time may use a batch.

Shapes: B rows, S streams (rows and their unconditional twins), D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any

import torch

from unimodal.generation.decoders.slot_decoders import slots_for
from unimodal.generation.grammar import GrammarBatch
from unimodal.generation.plain import PlainRun
from unimodal.generation.request import FinishedRequest, GenerationConfig, GenerationRequest, TokenEvent

if TYPE_CHECKING:
    from unimodal.generation.engine import Engine


class ContinuousBatch(PlainRun):
    """run_on: for how many steps the rows go on before others may join, where no grammar needs to be asked."""

    def __init__(self, engine: Engine, run_on: int = 4) -> None:
        super().__init__(engine, [], GrammarBatch([]), [], None, None)
        self.configs: list[GenerationConfig] = []
        self.run_on = run_on
        self._slots: Any = slots_for(engine.decoder, engine.max_positions)
        self._requests: list[GenerationRequest] = []
        self._keys: list[int] = []
        self._next_key = count()
        self._errors: dict[int, Exception] = {}
        self.on_token = self._tell

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def num_streams(self) -> int:
        return len(self.streams)

    @property
    def decoder(self) -> Any:
        return self._slots

    def check(self, request: GenerationRequest) -> None:
        """Raises ValueError for a request that `admit` would refuse; may be called from another thread."""
        self.engine.prepare([request.prompt], [request.config])

    @torch.inference_mode()
    def admit(self, requests: Sequence[GenerationRequest]) -> list[int]:
        """Read the prompts and let them join; their keys. Raises ValueError, with no row changed, where
        `Engine.generate` would."""
        if not requests:
            return []
        prompts, configs = [list(r.prompt) for r in requests], [r.config for r in requests]
        grammar, guided = self.engine.prepare(prompts, configs)
        self.flush()
        if not len(self):
            self.engine.refresh_head()
        streams = [*prompts, *(list(configs[row].unconditional or ()) for row in guided)]
        row_of = [*range(len(prompts)), *guided]
        spans = [len(ids) + configs[row].max_new_tokens for ids, row in zip(streams, row_of, strict=True)]
        hidden = self.decoder.join(streams, self.engine.pad_id, spans)  # [S, D]
        self.hidden = torch.cat([self.hidden, hidden]) if len(self) else hidden
        self.streams.add_rows(len(prompts), guided)
        self.grammar.grammars += grammar.grammars
        self.grammar.states += grammar.states
        self.configs += configs
        self.answers += [[] for _ in prompts]
        self._requests += requests
        self.fades = any(config.guidance_interval for config in self.configs)
        self.stats.prompt_tokens += sum(map(len, streams))
        keys = [next(self._next_key) for _ in requests]
        self._keys += keys
        return keys

    @torch.inference_mode()
    def flush(self) -> None:
        """Read the tokens that wait for the next step, so that rows can join. After an exception: `clear`."""
        self._read()

    @torch.inference_mode()
    def advance_rows(self) -> list[FinishedRequest]:
        """Write at least one token of every row; the rows that are done leave and are returned. After an exception the
        rows cannot go on: `clear`."""
        if not len(self):
            return []
        self.advance()
        rows = [row for row, state in enumerate(self.grammar.states) if state.finished]
        done = [
            FinishedRequest(self._keys[row], self.answers[row], self._errors.pop(self._keys[row], None)) for row in rows
        ]
        self._retire(rows)
        return done

    @torch.inference_mode()
    def cancel(self, keys: Sequence[int]) -> None:
        """Drop rows at once; keys that are not here any more are ignored."""
        gone = set(keys)
        self._retire([row for row, key in enumerate(self._keys) if key in gone])

    def clear(self) -> list[int]:
        """Drop all rows and what the decoder holds; the keys of the rows."""
        keys, numbers = list(self._keys), self._next_key
        self.__init__(self.engine, self.run_on)  # type: ignore[misc]
        self._next_key = numbers  # a key never names two requests
        return keys

    # ---- what differs from a run whose rows all start together

    def drop_finished(self) -> None:
        self.drop_faded()

    def unasked_steps(self) -> int:
        return min(super().unasked_steps(), self.run_on)

    def _go_on_with(self, kept: list[int]) -> None:
        self.decoder.keep(kept)
        self.hidden = self.hidden[kept]

    def count(self, num_new: int) -> None:
        self.stats.forwards += 1  # a batch lives as long as its server: totals, no list of steps
        self.stats.step_tokens += num_new * len(self.streams)

    def _tell(self, event: TokenEvent) -> None:
        key, watcher = self._keys[event.row], self._requests[event.row].on_token
        if watcher is None:
            return
        try:
            over = watcher(TokenEvent(key, event.index, event.id, event.modality, event.finished))
        except Exception as error:
            over, self._errors[key] = True, error
        if over:
            self.grammar.states[event.row].finished = True

    def _retire(self, rows: Sequence[int]) -> None:
        if not rows:
            return
        gone = set(rows)
        kept = [row for row in range(len(self)) if row not in gone]
        self._go_on_with(self.streams.drop_rows([row in gone for row in range(len(self))]))
        self.streams.renumber_rows()
        index = torch.tensor(kept, dtype=torch.int64, device=self.hidden.device)
        self.waiting = [column[index] for column in self.waiting] if kept else []
        for name in ("configs", "answers", "_requests", "_keys"):
            setattr(self, name, [getattr(self, name)[row] for row in kept])
        self.grammar.grammars = [self.grammar.grammars[row] for row in kept]
        self.grammar.states = [self.grammar.states[row] for row in kept]

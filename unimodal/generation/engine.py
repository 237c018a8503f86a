"""Decoding of whole answers: every row of the batch by its own grammar, seed, sampling and guidance.

A step feeds the last token of every stream to the decoder, computes the head only for the rows of the vocabulary that
the grammars allow next (one slice when the batch is inside one block), draws, and moves the grammars on. Tokens without
an alternative (span starts, marks and ends) are not computed at all: they wait and join the next step that needs one.
A row's answer does not depend on its neighbours: padding is masked, positions are explicit, noise belongs to the row.

Shapes: B rows, R rows of a group that may write the same, S streams (rows and their unconditional twins), N tokens of a
prompt, K candidate rows of the vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from unimodal.config import Config
from unimodal.generation.grammar import Grammar, GrammarBatch, Ranges
from unimodal.generation.guidance import Streams, combine, needs_guidance, row_scales
from unimodal.generation.lean_decoder import LeanDecoder, lean_problem
from unimodal.generation.reference_decoder import ReferenceDecoder
from unimodal.generation.sampling import SamplingConfig, noise_keys, sample
from unimodal.model.rows import ExtendedHead, head_rows
from unimodal.vocabulary import Vocabulary

# Allowed rows this close to each other are computed in one slice, and those between them masked.
_GAP = 64
_PLAIN = SamplingConfig()


class GenerationConfig(Config):
    """One row's request. ``sampling`` and ``guidance`` are by modality (text, image, audio, video).

    ``unconditional`` is the prompt with its text dropped, as ids; it is needed where a guidance is not 1. ``force``,
    ``allow`` and the limits go to the grammar. ``stop`` are sequences of text ids that end the answer early.
    A row whose guidance may come into play runs two streams from its first token on, text included: name the media that
    it may write in ``allow`` or leave their guidance out.
    """

    max_new_tokens: int = Field(default=256, gt=0)
    force: str | None = None
    allow: tuple[str, ...] | None = None
    seed: int = 0
    sampling: dict[str, SamplingConfig] = {}
    guidance: dict[str, float] = {}
    unconditional: tuple[int, ...] | None = None
    min_text_tokens: int = Field(default=0, ge=0)
    max_text_tokens: int | None = None
    max_spans: int | None = None
    min_codes: dict[str, int] = {}
    max_codes: dict[str, int] = {}
    stop: tuple[tuple[int, ...], ...] = ()

    @field_validator("guidance")
    @classmethod
    def _media_only(cls, guidance: dict[str, float]) -> dict[str, float]:
        for name, scale in guidance.items():
            if name == "text" and scale != 1.0:
                raise ValueError("guidance applies to media tokens; leave text out")
            if scale < 0:
                raise ValueError(f"guidance {scale} of {name} is negative; 1 turns it off")
        return guidance


@dataclass(frozen=True)
class TokenEvent:
    """One new token: of which row, its number in the answer, its id, and the medium it belongs to (or text)."""

    row: int
    index: int
    id: int
    modality: str
    finished: bool


@dataclass
class GenerationStats:
    """What the last call computed: forwards of the decoder, streams x tokens in the prompt and in the steps."""

    forwards: int = 0
    prompt_tokens: int = 0
    step_tokens: int = 0
    stream_counts: list[int] = field(default_factory=list)  # streams of every forward


@dataclass(frozen=True)
class _Candidates:
    """The head for one set of allowed rows: slices to compute, their ids [K], and which of them are allowed."""

    slices: tuple[range, ...]
    ids: Tensor
    banned: Tensor | None
    only: int | None  # the id, where there is no choice


class Engine:
    """Generates with a Hugging Face causal LM and its vocabulary.

    decoder: "auto" takes the lean step where it fits (stock Llama) and the model's own forward elsewhere; "lean" and
    "reference" name one.
    """

    def __init__(self, model: nn.Module, vocabulary: Vocabulary, decoder: str = "auto") -> None:
        if decoder not in ("auto", "lean", "reference"):
            raise ValueError(f"decoder {decoder!r} is unknown; use auto, lean or reference")
        config = model.config
        for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
            if getattr(config, name, None) not in (None, 1, 1.0):
                raise ValueError(f"{type(model).__name__} changes its logits ({name}); the engine computes plain ones")
        self.model = model.eval()
        self.vocabulary = vocabulary
        lean = decoder == "lean" or (decoder == "auto" and lean_problem(model) is None)
        self._reference = ReferenceDecoder(model)
        self._decoder = LeanDecoder(model) if lean else self._reference
        self.head = model.get_output_embeddings()
        extended = isinstance(self.head, ExtendedHead)
        num_rows = int(self.head.num_base + len(self.head.new_rows) if extended else self.head.out_features)
        if num_rows < vocabulary.size:
            raise ValueError(f"the model has {num_rows} rows, its vocabulary {vocabulary.size}: not of one model")
        self.max_positions: int = config.max_position_embeddings
        self.stats = GenerationStats()
        self._candidates: dict[Ranges, _Candidates] = {}
        self.pad_id = vocabulary.control_id("<|pad|>")

    @property
    def decoder(self) -> LeanDecoder | ReferenceDecoder:
        """The lean step reads the weights itself, so while something stands in for the model's forward (compression
        does), the reference decoder calls that."""
        return self._reference if "forward" in vars(self._reference.backbone) else self._decoder

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        config: GenerationConfig | Sequence[GenerationConfig] | None = None,
        on_token: Callable[[TokenEvent], None] | None = None,
    ) -> list[list[int]]:
        """Answer every prompt and return the new ids of each, up to and with its ``<|end_of_turn|>``.

        A span that a prompt leaves open is continued. ``on_token`` is called for every token in order; an exception in
        it ends the call. Raises ValueError, before anything is computed, for what cannot be kept: a forced medium that
        does not fit max_new_tokens, more tokens than the model has positions, guidance without `unconditional`.
        """
        num = len(prompts)
        if not num:
            return []
        configs = [config or GenerationConfig()] * num if not isinstance(config, Sequence) else list(config)
        if len(configs) != num:
            raise ValueError(f"{num} prompts came with {len(configs)} configs; give one config or one for each")
        grammar = GrammarBatch([self._grammar(c) for c in configs], prompts)
        guided = self._guided(configs, prompts, grammar)
        run = _Run(self, configs, grammar, guided, on_token)
        self.stats = run.stats
        twins = [list(configs[row].unconditional or ()) for row in guided]
        run.start([*(list(prompt) for prompt in prompts), *twins])
        while not grammar.finished.all():
            run.advance()
        return run.answers

    def _grammar(self, config: GenerationConfig) -> Grammar:
        return Grammar(
            self.vocabulary,
            config.max_new_tokens,
            allow=config.allow,
            force=config.force,
            min_text_tokens=config.min_text_tokens,
            max_text_tokens=config.max_text_tokens,
            max_spans=config.max_spans,
            min_codes=config.min_codes,
            max_codes=config.max_codes,
        )

    def _guided(
        self, configs: Sequence[GenerationConfig], prompts: Sequence[Sequence[int]], grammar: GrammarBatch
    ) -> list[int]:
        """The rows that need a second stream; checks lengths and ids of all prompts."""
        guided = []
        for row, (config, prompt) in enumerate(zip(configs, prompts, strict=True)):
            for name in (*config.sampling, *config.guidance):
                if name != "text" and name not in self.vocabulary.media:
                    known = ", ".join(("text", *self.vocabulary.media))
                    raise ValueError(f"sampling or guidance names {name!r}, but this model has {known}")
            writable = [*grammar.grammars[row].allow, grammar.states[row].modality]
            needed: list[Sequence[int]] = [prompt]
            if needs_guidance(config.guidance, writable):
                if config.unconditional is None:
                    raise ValueError("guidance needs `unconditional`, the ids of the prompt without its text")
                guided.append(row)
                needed.append(config.unconditional)
            for ids in needed:
                if not len(ids):
                    raise ValueError("a prompt is empty; it holds at least <|bos|>")
                if not 0 <= min(ids) <= max(ids) < self.vocabulary.size:
                    raise ValueError(f"a prompt has an id outside the {self.vocabulary.size} rows of the vocabulary")
                if len(ids) + config.max_new_tokens > self.max_positions:
                    room = self.max_positions - len(ids)
                    fix = f"lower max_new_tokens to {room}" if room > 0 else "shorten the prompt"
                    raise ValueError(
                        f"a prompt of {len(ids)} tokens and max_new_tokens {config.max_new_tokens} exceed the model's"
                        f" {self.max_positions} positions; {fix}"
                    )
        return guided

    def candidates(self, ranges: Ranges) -> _Candidates:
        """How to compute the head for these ranges; made once for each."""
        found = self._candidates.get(ranges)
        if found is None:
            slices: list[range] = []
            for start, end in ranges:
                if slices and start - slices[-1].stop <= _GAP:
                    slices[-1] = range(slices[-1].start, end)
                else:
                    slices.append(range(start, end))
            ids = torch.cat([torch.arange(s.start, s.stop) for s in slices])
            allowed = torch.zeros(len(ids), dtype=torch.bool)
            for start, end in ranges:
                allowed |= (ids >= start) & (ids < end)
            only = int(ids[0]) if len(ids) == 1 else None
            banned = None if bool(allowed.all()) else ~allowed.to(self.device)
            found = self._candidates[ranges] = _Candidates(tuple(slices), ids.to(self.device), banned, only)
        return found

    def logits(self, hidden: Tensor, candidates: _Candidates) -> Tensor:
        """hidden [R, D] -> logits [R, K] over the candidates only."""
        if type(self.head) is nn.Linear or isinstance(self.head, ExtendedHead):
            bias = getattr(self.head, "bias", None)
            parts = [
                F.linear(hidden, head_rows(self.head, s), None if bias is None else bias[s.start : s.stop])
                for s in candidates.slices
            ]
            logits = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        else:  # a wrapped head (LoRA on it, say) is run whole
            logits = self.head(hidden)[:, candidates.ids]
        return logits if candidates.banned is None else logits.masked_fill(candidates.banned, -torch.inf)


@dataclass(frozen=True)
class _Group:
    """Rows that draw from the same candidates in the coming steps, with everything that stays the same over them."""

    candidates: _Candidates
    rows: Tensor  # int64 [R]
    conditional: Tensor  # int64 [R], streams
    unconditional: Tensor | None  # int64 [R]; None: no row of the group is guided
    scales: Tensor | None  # [R, 1]
    sampling: list[SamplingConfig]
    seeds: list[int]
    lengths: list[int]  # tokens written before these steps


class _Run:
    """One call of generate: the streams, the tokens that wait to be read by the decoder, and the answers so far."""

    def __init__(
        self,
        engine: Engine,
        configs: Sequence[GenerationConfig],
        grammar: GrammarBatch,
        guided: Sequence[int],
        on_token: Callable[[TokenEvent], None] | None,
    ) -> None:
        self.engine, self.configs, self.grammar, self.on_token = engine, configs, grammar, on_token
        self.streams = Streams(len(configs), guided)
        self.answers: list[list[int]] = [[] for _ in configs]
        self.waiting: list[Tensor] = []  # columns of ids [B]
        self.stats = GenerationStats()
        self.watched = on_token is not None or any(config.stop for config in configs)

    def start(self, prompts: list[list[int]]) -> None:
        """Read the prompts of all streams, [S, N]."""
        capacity = max(map(len, prompts)) + max(config.max_new_tokens for config in self.configs)
        self.hidden = self.engine.decoder.start(prompts, self.engine.pad_id, capacity)  # [S, D]
        self.stats.prompt_tokens = sum(map(len, prompts))
        self._count(0)

    def advance(self) -> None:
        """Write the next token of every unfinished row; several, where the grammars stay put whatever is drawn."""
        self._drop_finished()
        groups = [self._group(ranges, rows.tolist()) for ranges, rows in self.grammar.groups()]
        choice = any(group.candidates.only is None for group in groups)
        drawn: list[Tensor] = []
        for _ in range(1 if self.watched else self.grammar.steady()):
            if choice:
                self._read()
            column = torch.full((len(self.configs),), self.engine.pad_id, device=self.hidden.device)
            for group in groups:
                column[group.rows] = self._draw(group, len(drawn))
            self.waiting.append(column)
            drawn.append(column)
        for ids in torch.stack(drawn).tolist():
            self._record(ids)

    def _group(self, ranges: Ranges, rows: list[int]) -> _Group:
        device = self.hidden.device
        modalities = [self.grammar.states[row].modality for row in rows]
        configs = [self.configs[row] for row in rows]
        scales = row_scales(modalities, [config.guidance for config in configs])
        conditional, unconditional = self.streams.branches(rows)
        guided = any(scale != 1.0 for scale in scales)
        return _Group(
            self.engine.candidates(ranges),
            torch.tensor(rows, device=device),
            torch.tensor(conditional, device=device),
            torch.tensor(unconditional, device=device) if guided else None,
            torch.tensor(scales, device=device)[:, None] if guided else None,
            [config.sampling.get(name, _PLAIN) for config, name in zip(configs, modalities, strict=True)],
            [config.seed for config in configs],
            [len(self.answers[row]) for row in rows],
        )

    def _draw(self, group: _Group, step: int) -> Tensor:
        """The next token of the group's rows, int64 [R]."""
        if group.candidates.only is not None:
            return group.candidates.ids.expand(len(group.seeds))
        hidden = self.hidden[group.conditional]
        if group.unconditional is not None and group.scales is not None:
            hidden = combine(hidden, self.hidden[group.unconditional], group.scales)
        keys = noise_keys(group.seeds, [length + step for length in group.lengths])
        return sample(self.engine.logits(hidden, group.candidates), group.candidates.ids, group.sampling, keys)

    def _read(self) -> None:
        """Feed the waiting tokens to every stream of their row."""
        if self.waiting:
            ids = torch.stack(self.waiting, 1)[self.streams.row_of]  # [S, P]
            self.waiting.clear()
            self.hidden = self.engine.decoder.step(ids)
            self._count(ids.shape[1])

    def _count(self, num_new: int) -> None:
        self.stats.forwards += 1
        self.stats.stream_counts.append(len(self.streams))
        self.stats.step_tokens += num_new * len(self.streams)

    def _drop_finished(self) -> None:
        """Leave the streams of finished rows behind once they are half of the batch: one copy, then cheaper steps."""
        finished = self.grammar.finished
        alive = sum(not finished[row] for row in self.streams.row_of)
        if 2 * alive <= len(self.streams):
            kept = self.streams.drop_rows(finished.tolist())
            self.engine.decoder.keep(kept)
            self.hidden = self.hidden[kept]

    def _record(self, ids: list[int]) -> None:
        """Take one column of ids [B] into the answers and the grammars; tell the caller."""
        before = self.grammar.modalities()
        open_rows = [row for row, state in enumerate(self.grammar.states) if not state.finished]
        self.grammar.advance(ids)
        for row in open_rows:
            state, answer = self.grammar.states[row], self.answers[row]
            answer.append(ids[row])
            if before[row] == state.modality == "text" and any(_ends_with(answer, s) for s in self.configs[row].stop):
                state.finished = True
            if self.on_token is not None:
                modality = state.modality if before[row] == "text" else before[row]
                self.on_token(TokenEvent(row, len(answer) - 1, ids[row], modality, state.finished))


def _ends_with(answer: list[int], stop: Sequence[int]) -> bool:
    return len(stop) > 0 and tuple(answer[-len(stop) :]) == tuple(stop)

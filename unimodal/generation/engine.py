"""Decode whole answers: every row of the batch has its own grammar, seed, sampling and guidance.

A step feeds the last token of every stream to the decoder, computes the head only for the rows of the vocabulary that
the grammars allow next (one slice when the batch is inside one block), draws, and advances the grammars. Tokens without
an alternative (span starts, marks and ends) take no step of their own: they are read together with the next token that
is drawn. A row's answer does not depend on its neighbours, up to rounding and with fast decoders too: padding is
masked, positions are explicit, noise belongs to the row.

The loop itself is in `plain.py`; in `speculation.py` for decoders that write several tokens a step.

Shapes: B rows, S streams (rows and their unconditional twins), K candidate rows of the vocabulary, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import torch

from unimodal.compression import Method
from unimodal.generation.decoders.base_table import find_lean_problem
from unimodal.generation.decoders.cache_size import count_bytes
from unimodal.generation.decoders.compiled_decoder import CompiledDecoder
from unimodal.generation.decoders.compressed_slots import CompressedSlots
from unimodal.generation.decoders.flush_streams import stack_positions
from unimodal.generation.decoders.layer_weights import find_packed_problem
from unimodal.generation.decoders.lean_decoder import LeanDecoder
from unimodal.generation.decoders.packed_decoder import PackedDecoder
from unimodal.generation.decoders.reference_decoder import ReferenceDecoder
from unimodal.generation.decoders.step_decoder import StepDecoder
from unimodal.generation.depth_states import compute_code_states
from unimodal.generation.fast.protocol import FastDecoder
from unimodal.generation.fast.speculation import SpeculativeRun
from unimodal.generation.grammar import Grammar, GrammarBatch
from unimodal.generation.guidance import needs_guidance
from unimodal.generation.head import SlicedHead, WeightState, read_weight_state
from unimodal.generation.kinds import CACHES, NARROW, WEIGHTS
from unimodal.generation.likelihood import list_allowed_rows, list_next_rows
from unimodal.generation.native.product import choose_product
from unimodal.generation.parts import EngineParts
from unimodal.generation.plain import PlainRun
from unimodal.generation.prompt_cache import PromptCache
from unimodal.generation.request import GenerationConfig, GenerationStats, TokenEvent
from unimodal.generation.run import DecodingRun, PreparedBatch
from unimodal.generation.session import GenerationSession
from unimodal.model.depth_decoder import find_depth_decoder
from unimodal.model.feature_rows import FeatureRows
from unimodal.model.soft_prompt import list_prompt_ids
from unimodal.vocabulary import Vocabulary
from unimodal.vocabulary.positions import Position

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger("unimodal.generation")

# Beside layers in 4 bits the head has 8: llama.cpp, too, keeps that of q4_0 wider (q6_K).
_HEADS = {"int4": "int8"}
# "auto" does not pack layers larger than this, since the copy takes as much memory again.
_MOST_PACKED_UNASKED = 500_000_000


class Engine:
    """Generates with a Hugging Face causal LM and its vocabulary.

    decoder: "lean" for stock bases (`base_table.py`); "reference" for the model's own forward; "auto" for the lean one
    if it fits; or a decoder object. weights: what the lean step reads: "model" for the modules as they are; "float32",
    "bfloat16", "int8" or "int4" for a rearranged copy (`products.py`; all but the first lose a little); "auto" for the
    float32 copy on a processor if it fits. kv: its keys and values, "model" for the model's own precision, or
    "bfloat16" or "int8". compile: run the lean step of one token through `torch.compile`, as a CUDA graph on a GPU;
    True or a backend's name. Raises ValueError for a choice that does not fit the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        vocabulary: Vocabulary,
        decoder: str | StepDecoder = "auto",
        weights: str = "auto",
        compile: bool | str = False,
        kv: str = "model",
    ) -> None:
        self.model = model.eval()
        self.vocabulary = vocabulary
        #: the precision that was asked for and that the model's own forward, as under compression, does not have
        self.narrowed = f"weights {weights}" if weights in NARROW else f"kv {kv}" if kv != "model" else None
        self._reference = ReferenceDecoder(model)
        own = _make_decoder(model, decoder, weights, compile, kv) or self._reference
        make_product = None
        if isinstance(own, PackedDecoder) and not _is_on_cuda(model):
            make_product = choose_product(_HEADS.get(own.weights, own.weights))
        self.head = SlicedHead(model, make_product)
        if self.head.num_rows < vocabulary.size:
            raise ValueError(
                f"the model has {self.head.num_rows} rows, its vocabulary {vocabulary.size}: not of one model"
            )
        #: the ids of the model's soft prompt, which are read before every prompt
        self.prompt_ids = list_prompt_ids(model)
        most = int(model.config.max_position_embeddings)
        self.max_positions = most - len(self.prompt_ids)
        self.pad_id = vocabulary.get_control_id("<|pad|>")
        self.stats = GenerationStats()
        depth = find_depth_decoder(model)
        if depth is None and not vocabulary.positions.is_flat:
            raise ValueError("the vocabulary has summed positions, but the model no depth decoder to write them")
        table = None if depth is None else model.get_input_embeddings()
        held = PromptCache(model, own, self.prompt_ids, self.pad_id) if self.prompt_ids else None
        self._own_parts = EngineParts(own, self.head, vocabulary, self.pad_id, most, self.device, depth, table, held)
        self._reference_parts = replace(self._own_parts, decoder=self._reference, prompt=None)
        self._head_state: WeightState | None = None

    @property
    def parts(self) -> EngineParts:
        """The decoder, head and sizes that runs, sessions and batches use.

        While the model's forward is replaced, as by compression, this is the reference decoder, which calls it: the
        lean step would read the weights itself.
        """
        return self._reference_parts if self.intercepted else self._own_parts

    @property
    def decoder(self) -> StepDecoder:
        return self.parts.decoder

    @property
    def intercepted(self) -> bool:
        """Whether the model's forward, called here, is replaced, as compression does where its context is open."""
        return self._reference.intercepted

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def make_compressed_parts(self, methods: Sequence[Method]) -> EngineParts:
        """The parts for streams that come and go under these methods. Raises ValueError for what a method refuses."""
        return replace(self._own_parts, decoder=CompressedSlots(self.model, self.vocabulary, methods), prompt=None)

    def open_session(self, size: int = 8) -> GenerationSession:
        """A session: later calls of `generate` reuse what they share with earlier prompts (`session.py`)."""
        return GenerationSession(self._own_parts.decoder, size)

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        config: GenerationConfig | Sequence[GenerationConfig] | None = None,
        on_token: Callable[[TokenEvent], None] | None = None,
        method: FastDecoder | None = None,
        session: GenerationSession | None = None,
    ) -> list[list[int]]:
        """Answer every prompt and return the new ids of each, up to and with its ``<|end_of_turn|>``.

        A span that a prompt leaves open is continued. on_token: called for every token in order; an exception in it
        ends the call. method: a decoder that writes several tokens a step (`unimodal.generation.DECODERS`). session:
        keeps the caches for later calls. Raises ValueError, before anything is computed, for a request that cannot be
        met: a forced medium that does not fit max_new_tokens, more tokens than the model has positions, or guidance
        without `unconditional`.
        """
        num = len(prompts)
        if not num:
            return []
        configs = [config or GenerationConfig()] * num if not isinstance(config, Sequence) else list(config)
        if len(configs) != num:
            raise ValueError(f"{num} prompts came with {len(configs)} configs; give one config or one for each")
        if session is not None and session.decoder is not self._own_parts.decoder:
            raise ValueError("the session is another engine's; make one with engine.open_session()")
        if self.intercepted and (session is not None or method is not None):
            what = "a session" if session is not None else f"the fast decoder {type(method).__name__}"
            raise ValueError(f"{what} needs the whole cache, which compression does not keep; use one or the other")
        batch = self.prepare(prompts, configs)
        self.refresh_head()
        run: DecodingRun
        if method is None:
            run = PlainRun(self.parts, batch, on_token, session)
        else:
            if not self.vocabulary.positions.is_flat:
                raise ValueError(
                    f"the fast decoder {type(method).__name__} guesses one code a token, and this model writes several "
                    "at a summed position; use the plain decoder"
                )
            method.check(self.vocabulary, sorted({name for g in batch.grammar.grammars for name in g.allow}))
            run = SpeculativeRun(self.parts, batch, method, on_token, session)
        self.stats = run.stats
        run.start()
        while not batch.grammar.finished.all():
            run.advance()
        run.store_caches()
        return run.answers

    @torch.inference_mode()
    def compute_log_likelihood(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[float]:
        """The log-probability of each answer's ids behind its prompt, in nats, as they would be drawn at temperature 1.

        At each place the softmax is over the rows that the grammar allows there, as in training (`likelihood.py`).
        Raises ValueError for an empty prompt or answer, for ids outside the vocabulary, and for an order of ids that no
        answer has.
        """
        if not prompts and not answers:
            return []
        if len(prompts) != len(answers):
            raise ValueError(f"{len(prompts)} prompts came with {len(answers)} answers; give one for each")
        if not all(len(prompt) and len(answer) for prompt, answer in zip(prompts, answers, strict=True)):
            raise ValueError("a prompt or an answer is empty; there is nothing to score")
        streams: list[list[Position]] = []
        for prompt, answer in zip(prompts, answers, strict=True):
            self._check_ids([*prompt, *answer])
            folded, begun = self.vocabulary.positions.fold([*prompt, *answer])
            streams.append([*folded, tuple(begun)] if begun else folded)
        allowed = [list_allowed_rows(self.vocabulary, *pair) for pair in zip(prompts, answers, strict=True)]
        longest = max(map(len, streams))
        if longest > self.max_positions:
            raise ValueError(f"{longest} tokens are to be scored, but the model has {self.max_positions} positions")
        self.refresh_head()
        first = [[*self.prompt_ids, *ids[:1]] for ids in streams]
        room = longest + len(self.prompt_ids)
        hidden = self.decoder.prefill(first, self.pad_id, room, self.parts.begin_streams(len(first)))[:, None]
        rest = stack_positions([[*ids[1:], *[self.pad_id] * (longest - len(ids))] for ids in streams], self.device)
        hidden = torch.cat([hidden, self.decoder.step(rest, every=True)], 1)  # [S, N, D]
        scores = []
        for ids, answer, states, rows in zip(streams, answers, hidden, allowed, strict=True):
            asked = compute_code_states(self.parts, states[: len(ids) - 1], ids[1:])[-len(answer) :]  # [A, D]
            scores.append(float(self.head.score(asked, answer, rows)[0].sum()))
        return scores

    @torch.inference_mode()
    def compute_next(self, prompt: Sequence[int]) -> torch.Tensor:
        """The probability [V] of every row of the vocabulary behind a prompt; 0 of those that cannot come there.

        Raises ValueError for an empty prompt, for one that ends within a summed position, and for an id outside the
        vocabulary.
        """
        folded, begun = self.vocabulary.positions.fold(list(prompt))
        if not folded or begun:
            raise ValueError("a prompt is to hold at least one id, and to end with a whole position")
        self._check_ids(prompt)
        if len(folded) > self.max_positions:
            raise ValueError(f"a prompt of {len(folded)} tokens exceeds the model's {self.max_positions} positions")
        self.refresh_head()
        read = [*self.prompt_ids, *folded]
        hidden = self.decoder.prefill([read], self.pad_id, len(read), self.parts.begin_streams(1))  # [1, D]
        may = self.head.select(list_next_rows(self.vocabulary, prompt))
        chances = self.head.compute_logits(hidden, may)[0].float().softmax(0)
        return chances.new_zeros(self.vocabulary.size).index_copy(0, may.ids, chances)

    def prepare(
        self, prompts: Sequence[Sequence[int]], configs: Sequence[GenerationConfig], compressed: bool = False
    ) -> PreparedBatch:
        """Requests with their grammars and the prompts of all their streams. Raises ValueError as `generate` does.

        compressed: the prompts will be read under compression, even if no context is open here.
        """
        positions = self.vocabulary.positions
        if (compressed or self.intercepted) and not positions.is_flat:
            raise ValueError(
                "compression follows single codes and this model reads the sum of several; use it on a flat model"
            )
        grammars = [Grammar(self.vocabulary, c, p) for c, p in zip(configs, prompts, strict=True)]
        grammar = GrammarBatch(grammars)
        guided = self._find_guided(configs, prompts, grammar)
        folded = [positions.fold(prompt) for prompt in prompts]
        twins = [positions.fold(configs[row].unconditional or ()) for row in guided]
        for row, (_, codes) in zip(guided, twins, strict=True):
            if codes != folded[row][1]:
                raise ValueError("`unconditional` must end within a summed position with the same codes as its prompt")
        streams = [ids for ids, _ in (*folded, *twins)]
        if not all(streams):
            raise ValueError("a prompt is empty; it holds at least <|bos|>")
        streams = [[*self.prompt_ids, *ids] for ids in streams] if self.prompt_ids else streams
        return PreparedBatch(streams, list(configs), grammar, guided, [codes for _, codes in folded])

    def count_cache_bytes(self, batch: PreparedBatch, compressed: bool = False) -> int:
        """The bytes of keys and values that these requests may take at most. Another thread may call this.

        compressed: as of `prepare`; what methods of compression leave out is not known before a prompt is read.
        """
        sizes = (self._reference if compressed else self._own_parts.decoder).measure_layers()
        return sum(count_bytes(sizes, capacity) for capacity in batch.capacities)

    def refresh_head(self) -> None:
        """Forget copies of the head's rows when its weights have changed."""
        if self.head.make_product is not None:
            now = read_weight_state(self.head.head.parameters())
            if now != self._head_state:
                self.head.forget()
                self._head_state = now

    def _check_ids(self, ids: Sequence[int]) -> None:
        if not self.can_read(ids):
            raise ValueError(f"a prompt has an id outside the {self.vocabulary.size} rows of the vocabulary")

    def can_read(self, ids: Sequence[int]) -> bool:
        """Whether all ids are rows of the vocabulary or of kept features, and the last one is no feature."""
        size = self.vocabulary.size
        if min(ids) >= 0 and max(ids) < size:
            return True
        table = self.model.get_input_embeddings()
        if not isinstance(table, FeatureRows) or not 0 <= ids[-1] < size:
            return False
        return all(0 <= row < size or row >= table.num_rows for row in ids) and table.has_ids(ids)

    def _find_guided(
        self, configs: Sequence[GenerationConfig], prompts: Sequence[Sequence[int]], grammar: GrammarBatch
    ) -> list[int]:
        """The rows that need an unconditional stream. Raises ValueError for a prompt of a wrong length or wrong ids."""
        guided = []
        for row, (config, prompt) in enumerate(zip(configs, prompts, strict=True)):
            for name in (*config.sampling, *config.guidance, *config.guidance_interval):
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
                self._check_ids(ids)
                length = self.vocabulary.positions.count(ids)
                if length + config.max_new_tokens > self.max_positions:
                    room = self.max_positions - length
                    fix = f"lower max_new_tokens to {room}" if room > 0 else "shorten the prompt"
                    raise ValueError(
                        f"a prompt of {length} tokens and max_new_tokens {config.max_new_tokens} exceed the model's"
                        f" {self.max_positions} positions; {fix}"
                    )
        return guided


def _is_on_cuda(model: PreTrainedModel) -> bool:
    return next(model.parameters()).is_cuda


@cache
def _say_once(message: str) -> None:
    log.warning("%s", message)


def _make_decoder(
    model: PreTrainedModel, decoder: str | StepDecoder, weights: str, compile: bool | str, kv: str
) -> StepDecoder | None:
    """The decoder of that name; None for the reference decoder. Raises ValueError as `Engine` does."""
    if not isinstance(decoder, str):
        if weights != "auto" or compile or kv != "model":
            raise ValueError(
                f"weights, kv and compile are settled by the {type(decoder).__name__} given; leave them out"
            )
        return decoder
    if decoder not in ("auto", "lean", "reference"):
        raise ValueError(f"decoder {decoder!r} is unknown; use auto, lean or reference")
    if weights not in ("auto", "model", *WEIGHTS):
        raise ValueError(f"weights {weights!r} are unknown; use auto, model, {', '.join(WEIGHTS)}")
    if kv not in CACHES:
        raise ValueError(f"kv {kv!r} is unknown; use {', '.join(CACHES)}")
    problem = find_lean_problem(model) if decoder == "auto" else None
    if decoder == "reference" or problem is not None:
        if weights in WEIGHTS or compile or kv != "model":
            asked = "compile" if compile else f"weights {weights!r}" if weights in WEIGHTS else f"kv {kv!r}"
            reason = f"does not fit: {problem}" if problem else "was not chosen"
            raise ValueError(f"{asked} goes with the lean decoder, which {reason}")
        if problem is not None:
            _say_once(f"decoding takes the model's own forward, which is several times slower: {problem}")
        return None
    if compile:
        if weights in WEIGHTS:
            raise ValueError(f"compile reads the model's own weights; leave weights {weights!r} out")
        if kv != "model":
            raise ValueError(f"compile has a cache of the model's own precision; leave kv {kv!r} out")
        return CompiledDecoder(model, "inductor" if compile is True else compile)
    if weights in WEIGHTS:
        return PackedDecoder(model, weights, kv)
    layers = model.get_decoder().layers
    small = sum(p.numel() for p in layers.parameters()) <= _MOST_PACKED_UNASKED
    single = all(p.dtype == torch.float32 for p in layers.parameters())
    if weights == "auto" and small and single and not _is_on_cuda(model) and find_packed_problem(model) is None:
        return PackedDecoder(model, kv=kv)
    return LeanDecoder(model, kv)

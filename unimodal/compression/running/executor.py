"""The one executor: runs a stock decoder's layers and applies every plan to states, positions, masks and cache.

While a context is open, this replaces the decoder's `forward`, so that everything that calls the model compresses:
`generate()`, a training loop, the engine (which then uses the model's own forward and not its lean step). A call made
where no context is open (`scope.py`) goes to the decoder's own forward. Layers, weights and attention kernel stay the
model's own. Positions are given at every step: decoding continues at the original length whatever the cache holds.
Contexts of several methods may be open at once; each acts at its own sites. An executor holds nothing of a call, so
that threads may run it at the same time.

Shapes: B rows, N tokens of a call, D width.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from types import MethodType
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import MoeModelOutputWithPast

from unimodal.compression.running.attention_rows import WatchedLayer
from unimodal.compression.running.checks import (
    check_attention,
    check_cache,
    check_call,
    check_forward,
    check_together,
    warn_without_cache,
)
from unimodal.compression.running.contracts import CacheMethod, OpenMethod, TokenMethod
from unimodal.compression.running.decoder_parts import DecoderParts, LayerKind
from unimodal.compression.running.forward_pass import ForwardPass, LayerPreview, preview_layer
from unimodal.compression.running.interception import INTERCEPTION, KERNELS
from unimodal.compression.running.layer_run import run_layer
from unimodal.compression.running.planning import compress, list_spans
from unimodal.compression.running.reading import AxisPositions, CallInput, InputReader
from unimodal.compression.running.replay import ReplayProbe, evict_by_replay
from unimodal.compression.running.returning import return_tokens
from unimodal.compression.running.scope import enter, find_open, leave
from unimodal.compression.running.slots import SlotLayer, count_kept
from unimodal.compression.running.spans import LocatedSpan, TurnState, find_word_spans
from unimodal.compression.running.stream import TokenStream

#: decoders whose forward is known to equal Llama's; others are compared with this one once
PROVEN = ("LlamaModel", "Qwen2Model", "Qwen3Model")


class PlanExecutor:
    """Takes the place of the `forward` of a decoder like LlamaModel or Qwen3Model while methods are open.

    Raises ValueError for a decoder whose own forward does more than this one, and for what `DecoderParts` refuses.
    """

    _lock: ClassVar[threading.RLock] = threading.RLock()
    #: decoders that passed the check of their forward; with the kinds of their layers, that of their attention too
    _passed: ClassVar[WeakKeyDictionary[nn.Module, list[LayerKind] | None]] = WeakKeyDictionary()

    def __init__(self, backbone: nn.Module, reader: InputReader) -> None:
        self.backbone, self.reader = backbone, reader
        self.parts = DecoderParts(backbone)
        self.users = 0  # contexts that are open, of all threads
        if type(backbone).__name__ in PROVEN:
            self._passed[backbone] = self.parts.kinds
        if backbone not in self._passed:
            check_forward(self.parts, lambda **call: self._run([], **call))
            self._passed[backbone] = None

    @classmethod
    def open(cls, opened: OpenMethod, reader: InputReader) -> PlanExecutor:
        """Add a method here and install the executor of its decoder, one for all contexts.

        Raises ValueError for cache methods that do not go together, for a layer that the model lacks, for a kernel that
        takes no dense mask, and for what the executor refuses.
        """
        backbone = opened.backbone
        with cls._lock:
            executor = cls._find(backbone) or cls(backbone, reader)
            executor._check(opened.method)
            executor.users += 1
            opened.users += 1
            if executor.users == 1:
                INTERCEPTION.install()
                backbone.forward = executor.forward
                executor.reader.install()
        enter(opened)
        return executor

    def close(self, opened: OpenMethod) -> None:
        """Remove a method; with the last one the decoder gets its own forward back."""
        leave(opened)
        with self._lock:
            self.users -= 1
            opened.users -= 1
            if not self.users:
                del self.backbone.forward
                self.reader.remove()
                INTERCEPTION.remove()

    @classmethod
    def _find(cls, backbone: nn.Module) -> PlanExecutor | None:
        """The executor in the place of a decoder's forward, or None."""
        forward = vars(backbone).get("forward")
        return forward.__self__ if isinstance(forward, MethodType) and isinstance(forward.__self__, cls) else None

    def _check(self, method: TokenMethod | CacheMethod) -> None:
        num_layers = len(self.parts.layers)
        if method.positions == "compacted" and self.has_axes:
            raise ValueError("positions on several axes (M-RoPE) cannot be compacted; use positions='kept'")
        if method.acts_on == "cache":
            check_together([o.method for o in find_open(self.backbone) if o.method.acts_on == "cache"], method)
            method.check(num_layers)
            looks = True
        else:
            method.check(num_layers)
            for index in method.find_changing_layers(num_layers) if method.shortens else range(num_layers):
                self.parts.list_modules_of(index)
            looks = method.previews or bool(method.find_watched_layers(num_layers))
        own = self.backbone.config._attn_implementation
        if own not in KERNELS:
            raise ValueError(f"compression does not work with attention {own!r}; use one of {', '.join(KERNELS)}")
        if looks:
            self._open_attention()

    def _open_attention(self) -> None:
        """Let methods look into the attention: check it, once for every decoder, and how its layers turn their keys."""
        kinds = self._passed[self.backbone]
        if kinds is None:
            INTERCEPTION.install()
            try:
                check_attention(self.parts, self._run_alone)
            finally:
                INTERCEPTION.remove()
            kinds = self._passed[self.backbone] = self.parts.kinds
        self.parts.kinds = kinds
        for kind in kinds:
            kind.rotation.has_axes = self.has_axes

    @property
    def has_axes(self) -> bool:
        """Whether positions lie on several axes."""
        return self.reader.has_axes and self.parts.has_axes

    # ---- the forward

    def forward(self, *args: object, **settings: object) -> object:
        """The decoder's forward: compressed where contexts are open, and its own everywhere else."""
        opened = find_open(self.backbone)
        if not opened:
            return type(self.backbone).forward(self.backbone, *args, **settings)
        return self._run(opened, *args, **settings)  # type: ignore[arg-type]  # as the decoder's own would take them

    def _run(
        self,
        methods: list[OpenMethod],
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        past_key_values: Cache | None = None,
        **settings: object,
    ) -> MoeModelOutputWithPast:
        """input_ids [B, N] → last_hidden_state [B, N, D], with zeros for dropped tokens; no router logits.

        Raises ValueError for a call that cannot be compressed: without ids, with a mask of its own, with several
        documents in a row, with a span of which an earlier call read a part, with a cache of another kind or begun
        outside the context, or with inner outputs requested.
        """
        cache = cache if cache is not None else past_key_values
        check_cache(cache)
        given = self.reader.complete(CallInput(input_ids, attention_mask, position_ids))
        input_ids, attention_mask, position_ids = given.ids, given.mask, given.position_ids
        check_call(input_ids, attention_mask, settings)
        assert input_ids is not None
        cache_layers, cache = self._prepare_cache(cache, use_cache)
        past = cache_layers[0].seen if cache_layers else 0
        num_rows, num = input_ids.shape
        valid = torch.ones_like(input_ids, dtype=torch.bool)
        if attention_mask is not None:
            valid = attention_mask[:, -num:].bool()
        if position_ids is None:
            position_ids = torch.arange(past, past + num, device=input_ids.device)[None]
        positions = position_ids.expand(num_rows, num)
        found = self._find_spans(input_ids, valid, positions, cache_layers, is_first=past == 0)
        cache_methods = [o.method for o in methods if o.method.acts_on == "cache"]
        if given.blocks is not None and any(o.method.acts_on == "cache" and o.method.acts == "mix" for o in methods):
            raise ValueError("pictures of this model see themselves in both directions; use another method than still")
        evictable = self._find_evictable(cache_methods, input_ids, valid, found)
        if not cache_layers and bool(evictable.any()):
            warn_without_cache(cache_methods, num)
        if num > 1 and any(o.method.acts_on == "tokens" and o.method.acts_on_words for o in methods):
            found = [*found, *find_word_spans(self.reader.find_words(input_ids) & valid, valid)]
        embedded = self.parts.embed(input_ids, inputs_embeds)
        stream = TokenStream.begin(embedded, input_ids, valid, positions, found, evictable, given.blocks)
        config, num_layers = self.backbone.config, len(self.parts.layers)
        active = [(o, o.method) for o in methods if o.method.acts_on == "tokens" and stream.spans]
        call = ForwardPass(
            config.num_attention_heads,
            num_layers,
            cache_methods,
            past == 0,
            past == 0 or num > 1,
            frozenset(i for _, method in active for i in method.find_watched_layers(num_layers)),
            frozenset(i for _, method in active for i in method.find_changing_layers(num_layers)),
            config._attn_implementation,
            None if given.axes is None else AxisPositions(given.axes.expand(-1, num_rows, -1), past),
        )
        settings = {**settings, self.parts.cache_name: cache, "use_cache": cache is not None}
        stream = self._run_layers(stream, call, active, cache_layers, settings)
        for number, method in enumerate(cache_methods):
            if method.acts == "replay" and method.keep < 1 and call.reads and cache_layers:
                if given.axes is not None or given.blocks is not None:
                    raise ValueError(
                        "this model's pictures cannot be read a second time; use another method than kvzip"
                    )
                request = method.repetition[0]
                again = partial(
                    self._read_again, request, input_ids, inputs_embeds, valid, positions, cache_layers, settings
                )
                evict_by_replay(method, number, cache_layers, again)
        for layer in cache_layers:
            layer.seen += num
        if past == 0 and cache_layers:
            kept = count_kept(cache_layers, valid)
            for opened in methods:
                opened.rows = kept
        states = stream.put_back(self.backbone.norm(stream.hidden), num)
        name = "cache" if "cache" in MoeModelOutputWithPast.__dataclass_fields__ else "past_key_values"
        return MoeModelOutputWithPast(last_hidden_state=states, **{name: cache})

    def _find_spans(
        self, ids: Tensor, valid: Tensor, positions: Tensor, cache_layers: list[SlotLayer], is_first: bool
    ) -> list[LocatedSpan]:
        """The spans of a call that may be compressed. The cache remembers in whose turn, and where, the call ended."""
        before = TurnState.begin(len(ids)) if is_first or not cache_layers else cache_layers[0].turn
        found: list[LocatedSpan] = []
        if ids.shape[1] == 1 and not is_first:
            after = None if before is None else before.step()
        else:
            found, after = self.reader.find_spans(ids, valid, before)
        if cache_layers:
            cache_layers[0].turn = after
        if found and bool(((positions[:, 1:] <= positions[:, :-1]) & valid[:, 1:] & valid[:, :-1]).any()):
            raise ValueError("compression takes one document a row; unpack the rows first")
        return found

    def _find_evictable(
        self, methods: list[CacheMethod], ids: Tensor, valid: Tensor, found: list[LocatedSpan]
    ) -> Tensor:
        """Which of the new tokens the cache methods may drop, bool [B, N]; they agree, and none do without such one."""
        free = torch.zeros_like(valid)
        for method in methods[:1]:
            for located in found:
                if located.modality in method.modalities:
                    free[located.row, list(located.columns)] = True
            if method.scope == "prompt":
                free |= self.reader.find_words(ids) & valid
        return free

    def _prepare_cache(self, cache: Cache | None, use_cache: bool | None) -> tuple[list[SlotLayer], Cache | None]:
        """The cache's layers as slot layers, and the cache; a new one if `use_cache` is set and none is given."""
        if cache is None:
            if not (self.backbone.config.use_cache if use_cache is None else use_cache):
                return [], None
            cache = DynamicCache()
        layers = self.parts.layers
        if not all(isinstance(layer, SlotLayer) for layer in cache.layers) or len(cache.layers) != len(layers):
            if cache.get_seq_length():
                raise ValueError("this cache was begun outside the compression context; begin a new one inside it")
            cache.layers = [SlotLayer() for _ in layers]
        return cache.layers, cache

    def _run_layers(
        self,
        stream: TokenStream,
        call: ForwardPass,
        active: list[tuple[OpenMethod, TokenMethod]],
        cache_layers: list[SlotLayer],
        settings: dict[str, object],
    ) -> TokenStream:
        num_layers = len(self.parts.layers)
        before = [sum(map(len, list_spans(method, stream))) for _, method in active]
        call.observer.begin = replace(stream)
        for opened, _ in active:
            opened.chosen.clear()
        for index, layer in enumerate(self.parts.layers):
            cache_layer = cache_layers[index] if cache_layers else None
            stream = return_tokens(stream, call.departed.pop(index, []))
            for opened, method in active:
                if index in method.find_sites(num_layers):
                    call.observer.preview = partial(self._preview, call, index, stream, cache_layer)
                    call.observer.read_logits = partial(self._read_logits, opened.head)
                    call.observer.read_words = partial(self.parts.embed, embedded=None)
                    stream = compress(opened, method, stream, call, index)
            tables, hook = call.enter_layer(index, self.parts.kinds[index], stream, cache_layer)
            changing = self.parts.list_modules_of(index) if index in call.changing else ()
            gated = None if stream.gates is None else self.parts.find_gated(index)
            fed = None if stream.feeds is None else self.parts.list_modules_of(index)[1]
            stream.hidden = run_layer(layer, changing, gated, fed, stream, tables, hook, settings)
            stream.gates, stream.feeds, stream.feed_forwards = None, None, ()
        stream = return_tokens(stream, call.departed.pop(num_layers, []))
        for (opened, method), num in zip(active, before, strict=True):
            opened.stats.tokens_before += num
            opened.stats.tokens_after += sum(map(len, list_spans(method, stream)))
        return stream

    def _read_again(
        self,
        request: tuple[int, ...],
        ids: Tensor,
        embedded: Tensor | None,
        valid: Tensor,
        positions: Tensor,
        cache_layers: list[SlotLayer],
        settings: dict[str, object],
        probe: ReplayProbe,
    ) -> None:
        """Run a request and the tokens of a call behind the call, under a probe; the caller restores the cache."""
        asked = torch.tensor(request, dtype=torch.int64, device=ids.device).expand(len(ids), -1)
        own = self.parts.embed(ids, embedded)
        states = torch.cat([self.parts.embed(asked, None).to(own), own], 1)
        real = torch.cat([torch.ones_like(asked, dtype=torch.bool), valid], 1)
        first = positions.masked_fill(~valid, -1).amax(1, keepdim=True) + 1
        places = first + real.cumsum(1) - 1
        stream = TokenStream.begin(states, torch.cat([asked, ids], 1), real, places, [], torch.zeros_like(real))
        config = self.backbone.config
        call = ForwardPass(
            config.num_attention_heads, len(self.parts.layers), [probe], False, True, frozenset(), frozenset(),
            config._attn_implementation,
        )  # fmt: skip
        self._run_layers(stream, call, [], cache_layers, settings)

    def _preview(
        self, call: ForwardPass, index: int, stream: TokenStream, cache_layer: SlotLayer | None
    ) -> WatchedLayer:
        """The queries and keys of a layer that is about to run."""
        kind = self.parts.kinds[index]
        tables = call.make_tables(kind, stream, None if cache_layer is None else cache_layer.slots)
        preview = LayerPreview(kind, tables.slots, stream, cache_layer)
        return preview_layer(self.parts.layers[index], preview, tables)

    def _read_logits(self, head: nn.Module | None, states: Tensor) -> Tensor:
        """The logits [B, N, V] of states [B, N, D] as if they were those behind the last layer."""
        states = self.backbone.norm(states)
        return F.linear(states, self.backbone.get_input_embeddings().weight) if head is None else head(states)

    def _run_alone(self, index: int, states: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        """One layer of the decoder on states [1, N, D] at positions [1, N], for a check."""
        rotary = self.parts.kinds[index].rotation.make_tables(states, positions[..., None])
        plain = torch.arange(states.shape[1], device=states.device)[None]
        settings = {self.parts.cache_name: cache, "use_cache": True}
        return self.parts.layers[index](
            states, attention_mask=None, position_ids=plain, position_embeddings=rotary, **settings
        )

"""The one executor: runs a stock decoder's layers and applies every plan to states, positions, masks and cache.

While a context is open, the decoder's `forward` is this one, so that everything that calls the model compresses:
`generate()`, a training loop, the engine (which leaves its lean step for the model's own forward). Layers, weights and
attention kernel are the model's own. Positions are given at every step: a decoding step continues at the original
length whatever the cache holds. Contexts of several methods may be open at once, each for its own sites.

Shapes: B rows, N tokens of a call, L slots of a cache layer, S spans planned together, D width, P source positions.
"""

from __future__ import annotations

import inspect
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unimodal.compression.kv.method import CacheCompressor
from unimodal.compression.method import Compressor, Span, share
from unimodal.compression.running.attention_rows import CallSource
from unimodal.compression.running.cache_executor import CacheExecutor
from unimodal.compression.running.interception import intercepted
from unimodal.compression.running.rotation import STATIC_ROPE, rotary_tables
from unimodal.compression.running.slots import SlotLayer, Slots
from unimodal.compression.running.spans import Located, input_spans
from unimodal.compression.running.stream import LiveSpan, Stream
from unimodal.vocabulary import Vocabulary

if TYPE_CHECKING:
    from unimodal.compression.running.session import Session


@dataclass(eq=False)
class Call:
    """One forward: what the layers' attention has to know, and tables that layers share."""

    executor: Executor
    source: CallSource
    first: bool  # nothing was read before
    watched: frozenset[int]
    changing: frozenset[int]  # layers whose change of the tokens is summed
    kwargs: dict[str, Any]  # for the layers
    attention: str = "sdpa"  # the model's own kernel
    slots: Slots | None = None  # of the layer that runs
    cache_layer: SlotLayer | None = None
    made: dict[Any, Any] = field(default_factory=dict)


class Executor:
    """Takes the place of the `forward` of a decoder like LlamaModel or Qwen3Model."""

    def __init__(self, backbone: nn.Module, vocabulary: Vocabulary) -> None:
        config = backbone.config
        missing = [name for name in ("layers", "rotary_emb", "norm") if not hasattr(backbone, name)]
        if missing:
            raise ValueError(f"{type(backbone).__name__} has no {missing[0]}; compression needs a decoder like Llama's")
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        if kinds != {"full_attention"}:
            raise ValueError(
                f"compression needs full attention in every layer; this model has {', '.join(sorted(kinds))}"
            )
        rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
        if rope not in STATIC_ROPE:
            raise ValueError(f"rotary positions of type {rope!r} depend on the length; compression needs fixed ones")
        self.backbone, self.vocabulary = backbone, vocabulary
        self.layers = list(backbone.layers[: config.num_hidden_layers])
        self.sessions: list[Session] = []
        names = inspect.signature(type(self.layers[0]).forward).parameters
        self.cache_name = "cache" if "cache" in names else "past_key_values"
        self.scaling = self.layers[0].self_attn.scaling

    def add(self, session: Session) -> None:
        if isinstance(session.method, CacheCompressor) and self.cache_method is not None:
            raise ValueError("one cache method at a time; leave the other's context first")
        if isinstance(session.method, Compressor):
            session.method.check(len(self.layers))
        self.sessions.append(session)

    @property
    def cache_method(self) -> CacheCompressor | None:
        return next((s.method for s in self.sessions if isinstance(s.method, CacheCompressor)), None)

    # ---- the forward

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        """input_ids [B, N] -> last_hidden_state [B, N, D], zeros in the places of tokens that went."""
        cache = cache if cache is not None else past_key_values
        self._refuse(input_ids, attention_mask, kwargs)
        assert input_ids is not None
        cache_layers, cache = self._cache_layers(cache, use_cache)
        past = cache_layers[0].seen if cache_layers else 0
        num_rows, num = input_ids.shape
        valid = torch.ones_like(input_ids, dtype=torch.bool)
        if attention_mask is not None:
            valid = attention_mask[:, -num:].bool()
        if position_ids is None:
            position_ids = torch.arange(past, past + num, device=input_ids.device)[None]
        positions = position_ids.expand(num_rows, num)
        embedded = self.backbone.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        found: list[Located] = []
        if num > 1:
            found = input_spans(input_ids, valid, self.vocabulary, self.vocabulary.media, fresh=past == 0)
            if found and bool(((positions[:, 1:] <= positions[:, :-1]) & valid[:, 1:] & valid[:, :-1]).any()):
                raise ValueError("compression takes one document a row; unpack the rows first")
        evictable = self._evictable(input_ids, valid, found)
        stream = Stream.begin(embedded, input_ids, valid, positions, found, evictable)
        hidden, stream = self._through_layers(stream, cache_layers, cache, past == 0, kwargs)
        for layer in cache_layers:
            layer.seen += num
        return self._output(stream.in_place(self.backbone.norm(hidden), num), cache)

    def _evictable(self, ids: Tensor, valid: Tensor, found: list[Located]) -> Tensor:
        """What the cache method, if there is one, may drop of the new tokens, bool [B, N]."""
        method = self.cache_method
        free = torch.zeros_like(valid)
        if method is not None:
            for located in found:
                if located.modality in method.modalities:
                    free[located.row, list(located.columns)] = True
            if method.scope == "prompt":
                free |= (ids < self.vocabulary.text_size) & valid
        return free

    def _through_layers(
        self, stream: Stream, cache_layers: list[SlotLayer], cache: Any, first: bool, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Stream]:
        num_layers = len(self.layers)
        active = [(s, s.method) for s in self.sessions if isinstance(s.method, Compressor) and stream.spans]
        call = Call(
            self,
            CallSource(self.scaling),
            first,
            frozenset(i for _, method in active for i in method.watches(num_layers)),
            frozenset(i for _, method in active for i in method.transitions_of(num_layers)),
            kwargs,
        )
        before = sum(map(len, stream.spans))
        for session, _ in active:
            session.chosen.clear()
        listening = bool(call.watched) or self.cache_method is not None
        with intercepted(self.backbone.config, listening) as call.attention:
            call.kwargs = {**kwargs, self.cache_name: cache, "use_cache": cache is not None}
            if listening:
                call.kwargs["compression"] = call
            for index, layer in enumerate(self.layers):
                for session, method in active:
                    if index in method.layers(num_layers):
                        stream = self._compress(session, method, stream, index, call)
                call.cache_layer = cache_layers[index] if cache_layers else None
                prior = call.cache_layer.slots if call.cache_layer is not None else None
                stream.hidden = self._layer(layer, index, stream, prior, call)
                if call.cache_layer is not None and call.cache_layer.slots is prior:
                    call.cache_layer.slots = call.slots
        for session, _ in active:
            session.stats.tokens_before += before
            session.stats.tokens_after += sum(map(len, stream.spans))
        return stream.hidden, stream

    def _layer(self, layer: nn.Module, index: int, stream: Stream, prior: Slots | None, call: Call) -> Tensor:
        mask, rotary = self._tables(call, stream, prior)
        # The rotation is done with the tables; positions that do not continue would be read as packed documents.
        plain = torch.arange(len(stream), device=stream.ids.device)[None]
        hooks = [
            module.register_forward_hook(lambda _, args, named, out: _note(stream, args, named, out), with_kwargs=True)
            for module in ((layer.self_attn, layer.mlp) if index in call.changing else ())
        ]
        try:
            return layer(
                stream.hidden, attention_mask=mask, position_ids=plain, position_embeddings=rotary, **call.kwargs
            )
        finally:
            for hook in hooks:
                hook.remove()

    def _compress(self, session: Session, method: Compressor, stream: Stream, index: int, call: Call) -> Stream:
        """Apply the plans of one method for one site."""
        spans = [span for span in stream.spans if span.located.modality in method.modalities]
        if not spans:
            return stream
        started = self._clock()
        call.source.stream = stream
        counts, hints = self._judged(method, stream, spans, index, call)
        shorter = [(span, count) for span, count in zip(spans, counts, strict=True) if count < len(span)]
        plans = []
        for members, count, rows, columns in stream.groups(shorter):
            span = self._span(stream, members, count, rows, columns, index, call)
            if hints:
                span.hint = torch.cat([hints[member] for member in members])
            plans.append((members, rows, columns, method.plan(span.hidden, span)))
        session.stats.planning_s += self._clock() - started
        for members, _, _, plan in plans:
            if plan.index.shape[1]:
                session.chosen.update({m.located: m.places[i] for m, i in zip(members, plan.index, strict=True)})
        if plans:
            stream = stream.compressed(plans, method.positions == "compacted")
            call.source.forget()
        return stream

    def _judged(
        self, method: Compressor, stream: Stream, spans: list[LiveSpan], index: int, call: Call
    ) -> tuple[list[int], dict[LiveSpan, Tensor]]:
        """What a method says of the spans of every row together: the count of each, and hints."""
        own = type(method)
        if own.counts is Compressor.counts and own.hints is Compressor.hints:
            return [share(method.keep, len(span.located.columns)) for span in spans], {}
        by_row: dict[int, list[tuple[LiveSpan, Span]]] = {}
        for live in spans:
            rows = torch.tensor([live.located.row], device=stream.ids.device)
            columns = stream.columns_of(rows, live.places[None])
            span = self._span(stream, [live], len(live), rows, columns, index, call)
            by_row.setdefault(live.located.row, []).append((live, span))
        counts: dict[LiveSpan, int] = {}
        hints: dict[LiveSpan, Tensor] = {}
        for members in by_row.values():
            together = [span for _, span in members]
            counts.update(zip([live for live, _ in members], method.counts(together, len(self.layers)), strict=True))
            hints.update(zip([live for live, _ in members], method.hints(together) or [], strict=False))
        return [counts[live] for live in spans], hints

    def _span(
        self, stream: Stream, members: list[LiveSpan], count: int, rows: Tensor, columns: Tensor, index: int, call: Call
    ) -> Span:
        located = members[0].located
        ends = torch.tensor([[m.located.end] for m in members], device=rows.device)
        lines = rows[:, None]
        sizes = torch.ones_like(columns, dtype=torch.float32)
        if stream.log_size is not None:
            sizes = stream.log_size[lines, columns].exp()
        return Span(
            stream.hidden[lines, columns],
            stream.ids[lines, columns],
            sizes,
            located.modality,
            count,
            located.segments,
            len(located.columns),
            index,
            source=call.source,
            place=(rows, columns, stream.columns_of(rows, ends)[:, 0]),
        )

    # ---- masks, positions, cache

    def _tables(self, call: Call, stream: Stream, prior: Slots | None) -> tuple[Tensor | None, tuple[Tensor, Tensor]]:
        """Mask and rotary tables of the coming layer, shared by all layers with the same tokens and slots before."""
        fresh = stream.slots()
        key = (id(fresh), id(prior))
        if key not in call.made:
            positions = stream.positions if prior is None else stream.positions - prior.shift[:, None, None]
            slots = fresh if prior is None else prior.followed_by(fresh, positions[..., 0])
            rotary = rotary_tables(self.backbone.rotary_emb, stream.hidden, positions)
            num_heads = self.backbone.config.num_attention_heads
            mask = _mask(slots, len(stream), stream.hidden.dtype, call.attention, num_heads)
            call.made[key] = (slots, mask, rotary, fresh, prior)  # the last two keep their ids alive
        call.slots, mask, rotary = call.made[key][:3]
        return mask, rotary

    def _cache_layers(self, cache: Any, use_cache: bool | None) -> tuple[list[SlotLayer], Any]:
        if cache is None:
            if not (self.backbone.config.use_cache if use_cache is None else use_cache):
                return [], None
            from transformers import DynamicCache

            cache = DynamicCache()
        layers = getattr(cache, "layers", None)
        if layers is None or getattr(cache, "is_compileable", False):
            raise ValueError(f"compression needs a DynamicCache, not a {type(cache).__name__}")
        if not all(isinstance(layer, SlotLayer) for layer in layers) or len(layers) != len(self.layers):
            if cache.get_seq_length():
                raise ValueError("this cache was begun outside the compression context; begin a new one inside it")
            cache.layers = [SlotLayer() for _ in self.layers]
        return cache.layers, cache

    def _output(self, hidden: Tensor, cache: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPast

        name = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
        return BaseModelOutputWithPast(last_hidden_state=hidden, **{name: cache})

    def _refuse(self, ids: Tensor | None, mask: Tensor | None, kwargs: dict[str, Any]) -> None:
        if ids is None:
            raise ValueError("compression finds spans by their ids; call the model with input_ids")
        if mask is not None and (isinstance(mask, dict) or mask.ndim != 2):
            raise ValueError("compression makes the masks itself; give a 2-d attention_mask, or none")
        if kwargs.pop("packing", None) is not None:
            raise ValueError("compression takes one document a row; unpack the rows first")
        for name in ("output_attentions", "output_hidden_states"):
            if kwargs.pop(name, None):
                raise ValueError(f"{name} is not available under compression: layers hold different tokens")

    def _clock(self) -> float:
        if next(self.backbone.parameters()).is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def attend(self, call: Call, module: nn.Module, kernel: Any, query: Tensor, key: Tensor, value: Tensor,
               mask: Tensor | None, kwargs: dict[str, Any]) -> Any:  # fmt: skip
        """One layer's attention: query [B, H, N, W], key and value [B, K, L, W], seen by the methods that watch."""
        assert call.slots is not None
        if module.layer_idx in call.watched:
            call.source.seen[module.layer_idx] = (query, key, call.slots)
        method = self.cache_method
        if method is None:
            return kernel(module, query, key, value, mask, **kwargs)
        return CacheExecutor(method, self.backbone.rotary_emb, call).attend(
            module, kernel, query, key, value, mask, kwargs
        )


def _mask(slots: Slots, num_new: int, dtype: torch.dtype, attention: str, num_heads: int) -> Tensor | None:
    """What is added to the scores of the newest `num_new` tokens, [B or 1, H or 1, num_new, L]; None where nothing is.

    Aligned bottom-right. A padding query sees itself, never nothing: no NaN.
    """
    length = len(slots)
    if slots.plain and (num_new == 1 or (num_new == length and attention != "eager")):
        return None
    if num_new == 1:
        return slots.bias(dtype, num_heads)[:, :, None]
    keys = torch.arange(length, device=slots.valid.device)
    queries = keys[length - num_new :, None]
    mask = torch.zeros(num_new, length, dtype=dtype, device=keys.device).masked_fill_(keys > queries, -torch.inf)
    if slots.plain:
        return mask[None, None]
    mask = mask + slots.bias(dtype, num_heads)[:, :, None]
    blind = (keys == queries) & ~slots.valid[:, length - num_new :, None]
    return mask.masked_fill(blind[:, None], 0.0)


def _note(stream: Stream, args: tuple, named: dict[str, Any], out: Any) -> None:
    """Add one module's change of its input to the stream's transitions (see TransPrune)."""
    given = args[0] if args else named["hidden_states"]  # [B, N, D]
    made = out[0] if isinstance(out, tuple) else out
    growth = made.float().norm(dim=-1) / given.float().norm(dim=-1).clamp_min(1e-6)
    turn = 1 - nn.functional.cosine_similarity(made.float(), given.float(), dim=-1)
    of_media = stream.media & stream.valid
    weight = turn.masked_fill(~of_media, -torch.inf).softmax(-1).nan_to_num(0.0)  # [B, N]
    change = growth * weight
    stream.changed = change if stream.changed is None else stream.changed + change

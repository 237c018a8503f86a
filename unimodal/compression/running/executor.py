"""The one executor: runs a stock decoder's layers and applies every plan to states, positions, masks and cache.

While a context is open, this replaces the decoder's `forward`, so that everything that calls the model compresses:
`generate()`, a training loop, the engine (which then uses the model's own forward and not its lean step). Layers,
weights and attention kernel stay the model's own. Positions are given at every step: decoding continues at the original
length whatever the cache holds. Contexts of several methods may be open at once; each acts at its own sites.

Shapes: B rows, N tokens of a call, S spans planned together, D width.
"""

from __future__ import annotations

import inspect
import time
from types import MethodType

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.modeling_outputs import MoeModelOutputWithPast

from unimodal.compression.plan import Plan, Span, count_share
from unimodal.compression.running.attention_rows import ForwardObserver
from unimodal.compression.running.contracts import CacheMethod, OpenMethod, TokenMethod
from unimodal.compression.running.forward_pass import ForwardPass
from unimodal.compression.running.interception import intercept_attention
from unimodal.compression.running.rotation import STATIC_ROPE
from unimodal.compression.running.slots import SlotLayer
from unimodal.compression.running.spans import LocatedSpan, find_input_spans
from unimodal.compression.running.stream import LiveSpan, SpanGroup, TokenStream
from unimodal.model.comparison import find_tolerance, measure_difference
from unimodal.vocabulary import Vocabulary

#: decoders whose forward is known to equal Llama's; others are compared with this one once
PROVEN = ("LlamaModel", "Qwen2Model", "Qwen3Model")
_NEEDS = "compression needs a decoder like Llama's"


class PlanExecutor:
    """Takes the place of the `forward` of a decoder like LlamaModel or Qwen3Model while methods are open.

    Raises ValueError for a decoder without the parts of Llama's, with attention that is not full, or with rotary
    positions that depend on the length.
    """

    def __init__(self, backbone: nn.Module, vocabulary: Vocabulary) -> None:
        config = backbone.config
        missing = [name for name in ("layers", "rotary_emb", "norm") if not hasattr(backbone, name)]
        if missing:
            raise ValueError(f"{type(backbone).__name__} has no {missing[0]}; {_NEEDS}")
        settings = config.to_dict()  # a config has only the settings of its family
        kinds = set(settings.get("layer_types") or ["full_attention"])
        if kinds == {"full_attention"} and any(
            type(layer) is not DynamicLayer for layer in DynamicCache(config=config).layers
        ):
            kinds.add("sliding_attention")  # Mistral and Phi-3 have a window but no `layer_types`
        if kinds != {"full_attention"}:
            others = ", ".join(sorted(kinds - {"full_attention"}))
            raise ValueError(f"compression needs full attention in every layer; this model has {others}")
        rope = (settings.get("rope_parameters") or {}).get("rope_type", "default")
        if rope not in STATIC_ROPE:
            raise ValueError(f"rotary positions of type {rope!r} depend on the length; compression needs fixed ones")
        self.backbone, self.vocabulary = backbone, vocabulary
        self.layers = list(backbone.layers[: config.num_hidden_layers])
        self.methods: list[OpenMethod] = []
        names = inspect.signature(type(self.layers[0]).forward).parameters
        self.cache_name = "cache" if "cache" in names else "past_key_values"
        attention = dict(self.layers[0].named_children()).get("self_attn")
        if attention is None or "scaling" not in vars(attention):
            raise ValueError(f"{type(backbone).__name__} has no self_attn.scaling; {_NEEDS}")
        self.scaling: float = attention.scaling
        if type(backbone).__name__ not in PROVEN:
            self._check_own()

    @torch.no_grad()
    def _check_own(self) -> None:
        """Raises ValueError for a decoder whose forward does more, as Granite's does, which scales embeddings."""
        ids = torch.tensor([[3, 1, 2]], device=next(self.backbone.parameters()).device)
        expected = self.backbone(input_ids=ids, use_cache=False).last_hidden_state
        try:
            found = self.forward(input_ids=ids, use_cache=False).last_hidden_state
            fits = measure_difference(found, expected) <= find_tolerance(self.backbone)
        except (AttributeError, RuntimeError, TypeError):
            fits = False
        if not fits:
            raise ValueError(f"{type(self.backbone).__name__} does more than the layers of Llama's; {_NEEDS}")

    @classmethod
    def find(cls, backbone: nn.Module) -> PlanExecutor | None:
        """The executor in the place of a decoder's forward, or None."""
        forward = vars(backbone).get("forward")
        return forward.__self__ if isinstance(forward, MethodType) and isinstance(forward.__self__, cls) else None

    def open(self, opened: OpenMethod) -> None:
        """Add a method. Raises ValueError for a second cache method, and for a layer that the model lacks."""
        if opened.method.acts_on == "cache":
            if self.cache_method is not None:
                raise ValueError("one cache method at a time; leave the other's context first")
        else:
            opened.method.check(len(self.layers))
        self.methods.append(opened)
        self.backbone.forward = self.forward

    def close(self, opened: OpenMethod) -> None:
        """Remove a method; with the last one the decoder gets its own forward back."""
        self.methods.remove(opened)
        if not self.methods:
            del self.backbone.forward

    @property
    def cache_method(self) -> CacheMethod | None:
        return next((opened.method for opened in self.methods if opened.method.acts_on == "cache"), None)

    # ---- the forward

    def forward(
        self,
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
        documents in a row, with a cache of another kind or begun outside the context, or with inner outputs requested.
        """
        cache = cache if cache is not None else past_key_values
        _check_call(input_ids, attention_mask, settings)
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
        embedded = self.backbone.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        found: list[LocatedSpan] = []
        if num > 1:
            found = find_input_spans(input_ids, valid, self.vocabulary, self.vocabulary.media, is_first=past == 0)
            if found and bool(((positions[:, 1:] <= positions[:, :-1]) & valid[:, 1:] & valid[:, :-1]).any()):
                raise ValueError("compression takes one document a row; unpack the rows first")
        evictable = self._find_evictable(input_ids, valid, found)
        stream = TokenStream.begin(embedded, input_ids, valid, positions, found, evictable)
        stream = self._run_layers(stream, cache_layers, cache, past == 0, settings)
        for layer in cache_layers:
            layer.seen += num
        states = stream.put_back(self.backbone.norm(stream.hidden), num)
        name = "cache" if "cache" in MoeModelOutputWithPast.__dataclass_fields__ else "past_key_values"
        return MoeModelOutputWithPast(last_hidden_state=states, **{name: cache})

    def _find_evictable(self, ids: Tensor, valid: Tensor, found: list[LocatedSpan]) -> Tensor:
        """Which of the new tokens the cache method may drop, bool [B, N]; none without such a method."""
        method = self.cache_method
        free = torch.zeros_like(valid)
        if method is not None:
            for located in found:
                if located.modality in method.modalities:
                    free[located.row, list(located.columns)] = True
            if method.scope == "prompt":
                free |= (ids < self.vocabulary.text_size) & valid
        return free

    def _prepare_cache(self, cache: Cache | None, use_cache: bool | None) -> tuple[list[SlotLayer], Cache | None]:
        """The cache's layers as slot layers, and the cache; a new one if `use_cache` is set and none is given."""
        if cache is None:
            if not (self.backbone.config.use_cache if use_cache is None else use_cache):
                return [], None
            cache = DynamicCache()
        if not isinstance(cache, Cache) or cache.is_compileable:
            raise ValueError(f"compression needs a DynamicCache, not a {type(cache).__name__}")
        if not all(isinstance(layer, SlotLayer) for layer in cache.layers) or len(cache.layers) != len(self.layers):
            if cache.get_seq_length():
                raise ValueError("this cache was begun outside the compression context; begin a new one inside it")
            cache.layers = [SlotLayer() for _ in self.layers]
        return cache.layers, cache

    def _run_layers(
        self,
        stream: TokenStream,
        cache_layers: list[SlotLayer],
        cache: Cache | None,
        is_first: bool,
        settings: dict[str, object],
    ) -> TokenStream:
        num_layers, config = len(self.layers), self.backbone.config
        active = [(o, o.method) for o in self.methods if o.method.acts_on == "tokens" and stream.spans]
        forward = ForwardPass(
            self.backbone.rotary_emb,
            config.num_attention_heads,
            ForwardObserver(self.scaling),
            self.cache_method,
            is_first,
            frozenset(i for _, method in active for i in method.find_watched_layers(num_layers)),
            frozenset(i for _, method in active for i in method.find_changing_layers(num_layers)),
        )
        before = sum(map(len, stream.spans))
        for opened, _ in active:
            opened.chosen.clear()
        settings = {**settings, self.cache_name: cache, "use_cache": cache is not None}
        if forward.listens:
            settings["compression"] = forward
        with intercept_attention(config, forward.listens) as forward.kernel:
            for index, layer in enumerate(self.layers):
                for opened, method in active:
                    if index in method.find_sites(num_layers):
                        stream = self._compress(opened, method, stream, index, forward.observer)
                cache_layer = cache_layers[index] if cache_layers else None
                stream.hidden = _run_layer(layer, index in forward.changing, stream, forward, cache_layer, settings)
        for opened, _ in active:
            opened.stats.tokens_before += before
            opened.stats.tokens_after += sum(map(len, stream.spans))
        return stream

    # ---- plans

    def _compress(
        self, opened: OpenMethod, method: TokenMethod, stream: TokenStream, site: int, observer: ForwardObserver
    ) -> TokenStream:
        """Apply the plans of one method for one site."""
        spans = [span for span in stream.spans if span.located.modality in method.modalities]
        if not spans:
            return stream
        started = self._read_clock()
        observer.stream = stream
        counts = [count_share(method.keep, len(span.located.columns)) for span in spans]
        hints: dict[LiveSpan, Tensor] = {}
        if method.judges_rows:
            counts, hints = self._judge_rows(method, stream, spans, site, observer)
        shorter = [(span, count) for span, count in zip(spans, counts, strict=True) if count < len(span)]
        plans: list[tuple[SpanGroup, Plan]] = []
        for group in stream.group_spans(shorter):
            span = _make_span(stream, group, site, observer)
            if hints:
                span.hint = torch.cat([hints[member] for member in group.spans])
            plans.append((group, method.plan(span.hidden, span)))
        opened.stats.planning_s += self._read_clock() - started
        for group, plan in plans:
            if plan.index.shape[1]:
                opened.chosen.update(
                    {member.located: member.places[i] for member, i in zip(group.spans, plan.index, strict=True)}
                )
        if plans:
            stream = stream.apply_plans(plans, method.positions == "compacted")
            observer.forget()
        return stream

    def _judge_rows(
        self, method: TokenMethod, stream: TokenStream, spans: list[LiveSpan], site: int, observer: ForwardObserver
    ) -> tuple[list[int], dict[LiveSpan, Tensor]]:
        """Ask a method about all spans of each row together: the count of each span, and hints by span."""
        by_row: dict[int, list[LiveSpan]] = {}
        for live in spans:
            by_row.setdefault(live.located.row, []).append(live)
        counts: dict[LiveSpan, int] = {}
        hints: dict[LiveSpan, Tensor] = {}
        for members in by_row.values():
            groups = [SpanGroup([live], len(live), stream.find_places([live])) for live in members]
            together = [_make_span(stream, group, site, observer) for group in groups]
            counts.update(zip(members, method.count_kept(together, len(self.layers)), strict=True))
            hints.update(zip(members, method.give_hints(together) or [], strict=False))
        return [counts[live] for live in spans], hints

    def _read_clock(self) -> float:
        if next(self.backbone.parameters()).is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def _make_span(stream: TokenStream, group: SpanGroup, site: int, observer: ForwardObserver) -> Span:
    """A group of spans as a method sees it."""
    located, lines, columns = group.spans[0].located, group.place.rows[:, None], group.place.columns
    sizes = torch.ones_like(columns, dtype=torch.float32)
    if stream.log_size is not None:
        sizes = stream.log_size[lines, columns].exp()
    return Span(
        stream.hidden[lines, columns],
        stream.ids[lines, columns],
        sizes,
        located.modality,
        group.count,
        located.segments,
        len(located.columns),
        site,
        observer=observer,
        place=group.place,
    )


def _run_layer(
    layer: nn.Module,
    is_changing: bool,
    stream: TokenStream,
    forward: ForwardPass,
    cache_layer: SlotLayer | None,
    settings: dict[str, object],
) -> Tensor:
    """Run one layer; return its states [B, N, D]. is_changing: add its changes of the tokens to the stream's."""
    tables = forward.enter_layer(stream, cache_layer)
    # The tables hold the rotation. Pass positions without gaps: a gap would begin a packed document.
    plain = torch.arange(len(stream), device=stream.ids.device)[None]
    hooks = [
        module.register_forward_hook(
            lambda _, args, named, out: note_transitions(stream, args, named, out), with_kwargs=True
        )
        for module in ((layer.self_attn, layer.mlp) if is_changing else ())
    ]
    try:
        return layer(
            stream.hidden, attention_mask=tables.mask, position_ids=plain, position_embeddings=tables.rotary, **settings
        )
    finally:
        for hook in hooks:
            hook.remove()


def note_transitions(
    stream: TokenStream, args: tuple[Tensor, ...], named: dict[str, Tensor], out: Tensor | tuple[Tensor, ...]
) -> None:
    """Add one module's change of its input to the stream's transitions (see TransPrune).

    args, named: the module's arguments, its states [B, N, D] first or as `hidden_states`. out: its output.
    """
    before = args[0] if args else named["hidden_states"]
    after = out[0] if isinstance(out, tuple) else out
    growth = after.float().norm(dim=-1) / before.float().norm(dim=-1).clamp_min(1e-6)
    turn = 1 - nn.functional.cosine_similarity(after.float(), before.float(), dim=-1)
    of_media = stream.media & stream.valid
    weight = turn.masked_fill(~of_media, -torch.inf).softmax(-1).nan_to_num(0.0)  # [B, N]
    change = growth * weight
    stream.changed = change if stream.changed is None else stream.changed + change


def _check_call(ids: Tensor | None, mask: Tensor | None, settings: dict[str, object]) -> None:
    """Raises ValueError for a call that cannot be compressed; removes from settings what is only checked."""
    if ids is None:
        raise ValueError("compression finds spans by their ids; call the model with input_ids")
    if mask is not None and (isinstance(mask, dict) or mask.ndim != 2):
        raise ValueError("compression makes the masks itself; give a 2-d attention_mask, or none")
    if settings.pop("packing", None) is not None:
        raise ValueError("compression takes one document a row; unpack the rows first")
    for name in ("output_attentions", "output_hidden_states"):
        if settings.pop(name, None):
            raise ValueError(f"{name} is not available under compression: layers hold different tokens")

"""The state of one forward under compression: tables that layers share, and the hook of each layer's attention.

Shapes: B rows, N tokens now, L slots of a cache layer, H query heads, K key/value heads, R rotated components.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.compression.running.attention_rows import AttentionRule, ForwardObserver, WatchedLayer
from unimodal.compression.running.cache_executor import attend_compressed
from unimodal.compression.running.contracts import CacheMethod, CacheWatcher
from unimodal.compression.running.decoder_parts import LayerKind
from unimodal.compression.running.interception import AttentionOutput, LayerAttention, hook_attention
from unimodal.compression.running.look import Look
from unimodal.compression.running.reading import AxisPositions
from unimodal.compression.running.returning import Departure
from unimodal.compression.running.slots import SlotLayer, Slots
from unimodal.compression.running.stream import TokenStream


class LayerTables(NamedTuple):
    """A layer's arguments beside the states."""

    slots: Slots  # those of its cache and behind them the new ones
    mask: Tensor | None  # [B or 1, H or 1, N, L]
    rotary: tuple[Tensor, Tensor]  # cos and sin, [B, N, R]


@dataclass(eq=False)
class ForwardPass:
    """One call of a decoder.

    is_first: nothing was read before. reads: the call has more than a token of an answer. watched: layers whose queries
    and keys are noted. changing: layers whose change of the tokens is summed. kernel: the name of the model's
    attention. axes: positions on several axes, where the model has such. departed: by site, what comes back there.
    """

    num_heads: int
    num_layers: int
    cache_methods: Sequence[CacheMethod | CacheWatcher]
    is_first: bool
    reads: bool
    watched: frozenset[int]
    changing: frozenset[int]
    kernel: str = "sdpa"
    axes: AxisPositions | None = None
    observer: ForwardObserver = field(default_factory=ForwardObserver)
    tables: dict[tuple[Slots, Slots | None, LayerKind], LayerTables] = field(default_factory=dict)
    departed: dict[int, list[Departure]] = field(default_factory=dict)

    def make_tables(self, kind: LayerKind, stream: TokenStream, prior: Slots | None) -> LayerTables:
        """The arguments of a layer of this kind; layers with the same slots share them. prior: the cache's slots."""
        fresh = stream.slots
        tables = self.tables.get((fresh, prior, kind))
        if tables is None:
            positions = stream.positions if prior is None else stream.positions - prior.shift[:, None, None]
            slots = fresh if prior is None else prior.append(fresh, positions[..., 0])
            rotary = kind.rotation.make_tables(stream.hidden, positions, self.axes)
            mask = make_mask(
                slots, len(stream), stream.hidden.dtype, self.kernel, self.num_heads, kind.window, stream.blocks
            )
            tables = self.tables[fresh, prior, kind] = LayerTables(slots, mask, rotary)
        return tables

    def enter_layer(
        self, index: int, kind: LayerKind, stream: TokenStream, cache_layer: SlotLayer | None
    ) -> tuple[LayerTables, LayerPass]:
        """The tables of the coming layer and its hook."""
        tables = self.make_tables(kind, stream, None if cache_layer is None else cache_layer.slots)
        if cache_layer is not None:
            cache_layer.slots = tables.slots  # a cache method may drop some of them while the layer runs
        return tables, LayerPass(self, index, kind, tables.slots, stream, cache_layer)


@dataclass(eq=False)
class LayerPass:
    """The `AttentionHook` of one layer in one call. It holds all it needs: checkpointing may run a layer again."""

    call: ForwardPass
    index: int
    kind: LayerKind
    slots: Slots
    stream: TokenStream
    cache_layer: SlotLayer | None

    @property
    def listens(self) -> bool:
        """Whether the layer's modules are asked for what goes through them."""
        call = self.call
        looks = self.index in call.watched or self.index in call.changing or bool(call.cache_methods)
        return looks or self.stream.gates is not None or self.stream.feeds is not None

    def attend(self, attention: LayerAttention) -> AttentionOutput:
        """Compute one layer's attention, under the cache method if there is one, and show it to the observer."""
        call, query, key = self.call, attention.query, attention.key
        rule = make_rule(attention, self.kind.window)
        if self.index in call.watched:
            call.observer.seen[self.index] = WatchedLayer(
                query.detach(), key.detach(), self.slots, rule, self.stream, self.kind.rotation,
                attention.value.detach().float().norm(dim=-1),
            )  # fmt: skip
        if not call.cache_methods:
            return attention.compute()
        look = Look(
            query.detach(), key.detach(), attention.value.detach(), self.slots, self.cache_layer or SlotLayer(), rule,
            self.kind.rotation, call.is_first, call.reads, self.index, call.num_layers,
        )  # fmt: skip
        return attend_compressed(call.cache_methods, look, attention, may_evict=self.cache_layer is not None)


class _Seen(Exception):
    """Ends a layer that was run for its queries and keys alone."""


@dataclass(eq=False)
class LayerPreview:
    """The `AttentionHook` of a layer that is run for its queries and keys alone, before it is run."""

    kind: LayerKind
    slots: Slots
    stream: TokenStream
    cache_layer: SlotLayer | None
    found: WatchedLayer | None = None

    def attend(self, attention: LayerAttention) -> AttentionOutput:
        key, layer = attention.key, self.cache_layer
        if layer is not None and layer.slots is not None:
            key = torch.cat([layer.read()[0], key], 2)
        rule = make_rule(attention, self.kind.window)
        self.found = WatchedLayer(attention.query, key, self.slots, rule, self.stream, self.kind.rotation)
        raise _Seen


@torch.no_grad()
def preview_layer(layer: nn.Module, preview: LayerPreview, tables: LayerTables) -> WatchedLayer:
    """The queries and keys that a layer will have for the tokens of a stream."""
    plain = torch.arange(len(preview.stream), device=preview.stream.ids.device)[None]
    with hook_attention(preview), suppress(_Seen):
        layer(preview.stream.hidden, attention_mask=tables.mask, position_ids=plain, position_embeddings=tables.rotary)
    assert preview.found is not None
    return preview.found


def make_rule(attention: LayerAttention, window: int | None) -> AttentionRule:
    """How the kernel makes logits of these queries and keys; only "eager" knows a softcap."""
    scaling, softcap = attention.settings.get("scaling"), attention.settings.get("softcap")
    return AttentionRule(
        float(scaling) if isinstance(scaling, int | float) else attention.query.shape[-1] ** -0.5,
        window,
        float(softcap) if isinstance(softcap, int | float) and attention.name == "eager" else None,
    )


def make_mask(
    slots: Slots,
    num_new: int,
    dtype: torch.dtype,
    kernel: str,
    num_heads: int,
    window: int | None = None,
    blocks: Tensor | None = None,
) -> Tensor | None:
    """The mask added to the logits of the newest `num_new` tokens, [B or 1, H or 1, num_new, L]; None for plain causal.

    Aligned bottom-right. A query of padding sees itself, since a row of the softmax without a key would be NaN.
    """
    length = len(slots)
    at = torch.arange(length - num_new, length, device=slots.valid.device).expand(len(slots.valid), num_new)
    is_near = window is None or (length <= window and not slots.has_gaps)
    if slots.plain and is_near and blocks is None:
        if num_new == 1 or (num_new == length and kernel != "eager"):
            return None
        hidden = slots.find_hidden(at[:1], None)
        return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
    mask = slots.make_bias(dtype, num_heads)[:, :, None]
    if num_new == 1 and is_near:
        return mask
    hidden = slots.find_hidden(at, None if is_near else window, num_heads)
    if blocks is not None:
        hidden = hidden & ~find_block_mates(blocks, length)[:, None]
    mask = mask.masked_fill(hidden, -torch.inf)
    places = torch.arange(length, device=at.device)
    blind = (places == at[..., None]) & ~slots.valid[:, length - num_new :, None]  # [B, N, L]
    return mask.masked_fill(blind[:, None], 0.0)


def find_block_mates(blocks: Tensor, length: int) -> Tensor:
    """The later slots that new tokens see because both are of one block, bool [B, N, L]; blocks int64 [B, N]."""
    place = torch.arange(blocks.shape[1], device=blocks.device)
    mates = (blocks[:, :, None] == blocks[:, None]) & (blocks[:, :, None] >= 0) & (place > place[:, None])
    return F.pad(mates, (length - blocks.shape[1], 0))

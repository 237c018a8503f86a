"""The state of one forward under compression, which the layers' attention reads, and tables that layers share.

Shapes: B rows, N tokens now, L slots of a cache layer, H query heads, K key/value heads, W head width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unimodal.compression.running.attention_rows import ForwardObserver
from unimodal.compression.running.cache_executor import attend_compressed
from unimodal.compression.running.contracts import CacheMethod
from unimodal.compression.running.interception import AttentionOutput, LayerAttention
from unimodal.compression.running.look import Look
from unimodal.compression.running.rotation import make_rotary_tables
from unimodal.compression.running.slots import SlotLayer, Slots
from unimodal.compression.running.stream import TokenStream


class LayerTables(NamedTuple):
    """A layer's arguments beside the states."""

    slots: Slots  # those of its cache and behind them the new ones
    mask: Tensor | None  # [B or 1, H or 1, N, L]
    rotary: tuple[Tensor, Tensor]  # cos and sin, [B, N, W]


@dataclass(eq=False)
class ForwardPass:
    """The `AttentionHook` of one call; `slots` and `cache_layer` are those of the layer that runs.

    is_first: nothing was read before. watched: layers whose queries and keys are noted. changing: layers whose change
    of the tokens is summed. kernel: the name of the model's own attention.
    """

    rotary: nn.Module
    num_heads: int
    observer: ForwardObserver
    cache_method: CacheMethod | None
    is_first: bool
    watched: frozenset[int]
    changing: frozenset[int]
    kernel: str = "sdpa"
    slots: Slots | None = None
    cache_layer: SlotLayer | None = None
    tables: dict[tuple[Slots, Slots | None], LayerTables] = field(default_factory=dict)

    @property
    def listens(self) -> bool:
        """Whether the layers' attention must go through this pass."""
        return bool(self.watched) or self.cache_method is not None

    def enter_layer(self, stream: TokenStream, cache_layer: SlotLayer | None) -> LayerTables:
        """The tables of the coming layer. Layers with the same tokens and the same slots before them share them."""
        fresh, prior = stream.slots, None if cache_layer is None else cache_layer.slots
        tables = self.tables.get((fresh, prior))
        if tables is None:
            positions = stream.positions if prior is None else stream.positions - prior.shift[:, None, None]
            slots = fresh if prior is None else prior.append(fresh, positions[..., 0])
            rotary = make_rotary_tables(self.rotary, stream.hidden, positions)
            mask = make_mask(slots, len(stream), stream.hidden.dtype, self.kernel, self.num_heads)
            tables = self.tables[fresh, prior] = LayerTables(slots, mask, rotary)
        self.slots, self.cache_layer = tables.slots, cache_layer
        if cache_layer is not None:
            cache_layer.slots = tables.slots  # a cache method may drop some of them while the layer runs
        return tables

    def attend(self, attention: LayerAttention) -> AttentionOutput:
        """Compute one layer's attention, under the cache method if there is one, and show it to the observer."""
        assert self.slots is not None
        query, key, index = attention.query, attention.key, attention.module.layer_idx
        if index in self.watched:
            self.observer.seen[index] = (query, key, self.slots)
        if self.cache_method is None:
            return attention.compute()
        layer = SlotLayer() if self.cache_layer is None else self.cache_layer
        look = Look(query, key, self.slots, layer, self.observer.scaling, self.rotary, self.is_first)
        return attend_compressed(self.cache_method, look, attention, may_evict=self.cache_layer is not None)


def make_mask(slots: Slots, num_new: int, dtype: torch.dtype, kernel: str, num_heads: int) -> Tensor | None:
    """The mask added to the logits of the newest `num_new` tokens, [B or 1, H or 1, num_new, L]; None for plain causal.

    Aligned bottom-right. A query of padding sees itself, since a row of the softmax without a key would be NaN.
    """
    length = len(slots)
    if slots.plain and (num_new == 1 or (num_new == length and kernel != "eager")):
        return None
    if num_new == 1:
        return slots.make_bias(dtype, num_heads)[:, :, None]
    keys = torch.arange(length, device=slots.valid.device)
    queries = keys[length - num_new :, None]
    mask = torch.zeros(num_new, length, dtype=dtype, device=keys.device).masked_fill_(keys > queries, -torch.inf)
    if slots.plain:
        return mask[None, None]
    mask = mask + slots.make_bias(dtype, num_heads)[:, :, None]
    blind = (keys == queries) & ~slots.valid[:, length - num_new :, None]
    return mask.masked_fill(blind[:, None], 0.0)

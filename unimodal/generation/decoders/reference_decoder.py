"""Cached decoding through the model's own forward: the standard for the lean decoder, and the way of other models.

The cache has room for the whole answer from the start (`reference_cache.py`), so no step copies it.

Shapes: S streams, P tokens of a step, C slots in all, K key/value heads, W head width, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unimodal.generation.decoders.cache_size import LayersSize
from unimodal.generation.decoders.flush_streams import (
    build_visible_mask,
    close_gap,
    count_unread,
    pad_left,
    plan_moves,
)
from unimodal.generation.decoders.step_decoder import CachedPrefix, Prompts, StreamCache
from unimodal.model.base_check import find_cache_name
from unimodal.model.depth_decoder import embed_positions
from unimodal.model.windows import find_windows

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel


class ReferenceDecoder:
    """A `StepDecoder` over any causal LM: its forward with a cache, a padding mask and explicit positions.

    The protocol describes the methods. Of layers with windows the cache holds what is seen; under compression, all.
    """

    cache: DynamicCache
    length: int  # slots in use
    pads: Tensor  # int64 [S], slots of left padding
    places: Tensor  # int64 [S, slots in use], the position of each slot
    num_computed: int

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.backbone: PreTrainedModel = model.get_decoder()
        self._table = model.get_input_embeddings()
        self._cache_name = find_cache_name(self.backbone)
        self._windows = find_windows(self.backbone.config)
        self._sizes: Sequence[LayersSize] | None = None

    @property
    def intercepted(self) -> bool:
        """Whether calls of this model, made here, are compressed."""
        if "forward" not in vars(self.backbone):  # no context is open anywhere
            return False
        from unimodal.compression.running.scope import is_compressing

        return is_compressing(self.backbone)

    @property
    def num_bytes(self) -> int:
        from unimodal.generation.decoders.reference_cache import weigh_layer

        return sum(map(weigh_layer, self.cache.layers))

    @torch.inference_mode()
    def measure_layers(self) -> Sequence[LayersSize]:
        from unimodal.generation.decoders.reference_cache import measure_layers

        if self._sizes is None:
            self._sizes = measure_layers(self.backbone, self._cache_name)
        return self._sizes

    def prefill(
        self, prompts: Prompts, pad_id: int, capacity: int, prefixes: Sequence[CachedPrefix | None] = ()
    ) -> Tensor:
        from unimodal.generation.decoders.reference_cache import WindowLayer, make_cache

        device = next(self.backbone.parameters()).device
        ids, self.pads = pad_left(prompts, pad_id, device)
        self.cache = make_cache(self.backbone.config, capacity, whole=self.intercepted)
        self.length = 0
        self.num_computed = count_unread(prompts, prefixes)
        first = ids.shape[1] - self.num_computed
        self.places = (torch.arange(max(first, 0), device=device) - self.pads[:, None]).clamp(min=0)
        if first > 0:
            given = next(prefix for prefix in prefixes if prefix is not None)
            joined = [held.new_zeros(len(prompts), held.shape[0], first, held.shape[2]) for held in given.cache.parts]
            for stream, prefix in enumerate(prefixes):
                pad = int(self.pads[stream])
                if prefix is not None and pad < first:
                    for number, (held, own) in enumerate(zip(joined, prefix.cache.parts, strict=True)):
                        layer = self.cache.layers[number // 2]
                        gone = max(0, prefix.cache.least - layer.window + 1) if isinstance(layer, WindowLayer) else 0
                        held[stream, :, pad + gone :] = own[:, : max(0, first - pad - gone)]
            for number in range(len(joined) // 2):
                self.cache.update(joined[2 * number], joined[2 * number + 1], number)
            self.length = first
        return self.step(ids[:, first:])

    def step(
        self, ids: Tensor, offsets: Tensor | None = None, visible: Tensor | None = None, every: bool = False
    ) -> Tensor:
        read = {"input_ids": ids} if ids.dim() == 2 else {"inputs_embeds": embed_positions(self._table, ids)}
        states = self._read(read, ids.shape[1], offsets, visible)
        return states if every else states[:, -1]

    def step_embedded(self, embedded: Tensor) -> Tensor:
        """Append what is no row, embedded [S, P, D], to the streams; return their last hidden states [S, D]."""
        return self._read({"inputs_embeds": embedded}, embedded.shape[1])[:, -1]

    def _read(
        self, read: dict[str, Tensor], num: int, offsets: Tensor | None = None, visible: Tensor | None = None
    ) -> Tensor:
        """Append `num` tokens, as ids or embedded, and return their last hidden states [S, P, D]."""
        begin, end, device = self.length, self.length + num, self.pads.device
        if offsets is None:
            offsets = torch.arange(num, device=device)[None]
        positions = (begin - self.pads[:, None] + offsets).clamp(min=0)  # [S, P]
        self._drop_unseen(positions, num)
        self.length = end
        self.places = torch.cat([self.places, positions.expand(len(self.pads), -1)], 1)
        mask: Tensor | dict[str, Tensor]
        if visible is None:
            mask = (torch.arange(end, device=device)[None, :] >= self.pads[:, None]).long()  # [S, end]
        else:
            mask = self._mask_visible(build_visible_mask(visible, self.pads, begin, end), positions)
        out = self.backbone(
            **read,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **{self._cache_name: self.cache},
        )
        states: Tensor = out.last_hidden_state
        return states

    def _drop_unseen(self, positions: Tensor, num_new: int) -> None:
        """Of layers with windows drop the slots that no token from these positions [S, P] on sees, once it is full."""
        from unimodal.generation.decoders.reference_cache import WindowLayer

        found: dict[int, int] = {}  # window → the first slot that is seen
        for layer in self.cache.layers:
            if isinstance(layer, WindowLayer) and layer.num_held and layer.num_held + num_new > layer.capacity:
                if layer.window not in found:
                    lowest = positions.min(1).values - layer.window + 1  # [S or 1]
                    seen = (self.places >= lowest[:, None]) & (
                        torch.arange(self.length, device=self.places.device) >= self.pads[:, None]
                    )
                    first = torch.where(seen.any(1), seen.int().argmax(1), self.length)
                    found[layer.window] = int(first.min())
                layer.drop(found[layer.window])

    @property
    def _num_dropped(self) -> int:
        """The slots that layers with windows no longer hold."""
        return max((getattr(layer, "dropped", 0) for layer in self.cache.layers), default=0)

    def _mask_visible(self, seen: Tensor, positions: Tensor) -> Tensor | dict[str, Tensor]:
        """The mask added to the scores, [S, 1, P, C]: one for all layers, or by kind of layer.

        seen: bool [S, P, C], the slots that each token sees. positions: int64 [S, P], of the tokens.
        """
        kind = self.model.dtype
        lowest = torch.finfo(kind).min

        def add(mask: Tensor) -> Tensor:  # "eager" takes no bools
            return torch.zeros(mask.shape, dtype=kind, device=mask.device).masked_fill_(~mask, lowest)[:, None]

        if self._windows is None:
            return add(seen)
        near = seen & (positions[:, :, None] - self.places[:, None] < self._windows.length)
        near = near[:, :, self._num_dropped :]
        if not self._windows.by_layer:
            return add(near)
        return {"full_attention": add(seen), "sliding_attention": add(near)}

    def commit(self, kept: Sequence[Sequence[int]], num_new: int) -> None:
        from unimodal.generation.decoders.reference_cache import WindowLayer, check_whole

        moves, length = plan_moves(self.pads.tolist(), kept, self.length, num_new)
        slots = [[*([0] * move.pad), *move.slots] for move in moves]
        index = torch.tensor(slots, dtype=torch.int64, device=self.pads.device)  # [S, C] slots to take
        self.pads = torch.tensor([move.pad for move in moves], dtype=torch.int64, device=self.pads.device)
        for layer in self.cache.layers:
            check_whole(layer, "cut; use the plain decoder")
            gone = layer.dropped if isinstance(layer, WindowLayer) else 0
            own = (index[:, gone:] - gone).clamp_(min=0)  # what would come from before is not seen any more
            layer.keys, layer.values = (
                held.gather(2, own[:, None, :, None].expand(-1, held.shape[1], -1, held.shape[3]))
                for held in (layer.keys, layer.values)  # [S, K, C, W]
            )
        self.places = self.places.gather(1, index)
        self.length = length

    def keep(self, streams: Sequence[int]) -> None:
        from unimodal.generation.decoders.reference_cache import WindowLayer, is_whole

        index = torch.tensor(list(streams), dtype=torch.int64, device=self.pads.device)
        self.pads, self.places = self.pads[index], self.places[index]
        self.cache.batch_select_indices(index)
        if all(is_whole(layer) for layer in self.cache.layers):
            self.pads, gap = close_gap(self.pads)
            self.length -= gap
            self.places = self.places[:, gap:]
            for layer in self.cache.layers if gap else ():
                cut = gap
                if isinstance(layer, WindowLayer):
                    cut = max(0, gap - layer.dropped)
                    layer.dropped = max(0, layer.dropped - gap)
                layer.keys, layer.values = layer.keys[:, :, cut:], layer.values[:, :, cut:]

    def export(self, stream: int) -> StreamCache:
        from unimodal.generation.decoders.reference_cache import WindowLayer

        pad, least = int(self.pads[stream]), 0
        held: list[Tensor] = []
        for layer in self.cache.layers:
            gone = layer.dropped if isinstance(layer, WindowLayer) else 0
            held += [part[stream, :, max(0, pad - gone) :].clone() for part in (layer.keys, layer.values)]
            if gone > pad:
                least = gone - pad + layer.window - 1
        return StreamCache(held, least)

    def count_read(self, stream: int) -> int:
        return self.length - int(self.pads[stream])

"""Cached decoding through the model's own forward: the standard for the lean decoder, and the way of other models.

The cache has room for the whole answer from the start (`reference_cache.py`), so no step copies it.

Shapes: S streams, P tokens of a step, C slots in all, K key/value heads, W head width, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

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

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel


class ReferenceDecoder:
    """A `StepDecoder` over any causal LM: its forward with a cache, a padding mask and explicit positions.

    The protocol describes the methods.
    """

    cache: DynamicCache
    length: int  # slots in use
    pads: Tensor  # int64 [S], slots of left padding
    places: Tensor  # int64 [S, slots in use], the position of each slot
    num_computed: int

    def __init__(self, model: PreTrainedModel) -> None:
        from unimodal.generation.decoders.reference_cache import find_windows

        self.model = model
        self.backbone: PreTrainedModel = model.get_decoder()
        self._table = model.get_input_embeddings()
        self._cache_name = find_cache_name(self.backbone)
        self._windows = find_windows(self.backbone.config)

    @property
    def intercepted(self) -> bool:
        """Whether calls of this model, made here, are compressed."""
        if "forward" not in vars(self.backbone):  # no context is open anywhere
            return False
        from unimodal.compression.running.scope import is_compressing

        return is_compressing(self.backbone)

    def prefill(
        self, prompts: Prompts, pad_id: int, capacity: int, prefixes: Sequence[CachedPrefix | None] = ()
    ) -> Tensor:
        from unimodal.generation.decoders.reference_cache import make_cache

        device = next(self.backbone.parameters()).device
        ids, self.pads = pad_left(prompts, pad_id, device)
        self.cache = make_cache(self.backbone.config, capacity)
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
                    for held, own in zip(joined, prefix.cache.parts, strict=True):
                        held[stream, :, pad:] = own[:, : first - pad]
            for number in range(len(joined) // 2):
                self.cache.update(joined[2 * number], joined[2 * number + 1], number)
            self.length = first
        return self.step(ids[:, first:])

    def step(
        self, ids: Tensor, offsets: Tensor | None = None, visible: Tensor | None = None, every: bool = False
    ) -> Tensor:
        begin, end = self.length, self.length + ids.shape[1]
        if offsets is None:
            offsets = torch.arange(ids.shape[1], device=ids.device)[None]
        positions = (begin - self.pads[:, None] + offsets).clamp(min=0)  # [S, P]
        self.length = end
        self.places = torch.cat([self.places, positions.expand(len(self.pads), -1)], 1)
        mask: Tensor | dict[str, Tensor]
        if visible is None:
            mask = (torch.arange(end, device=ids.device)[None, :] >= self.pads[:, None]).long()  # [S, end]
        else:
            mask = self._mask_visible(build_visible_mask(visible, self.pads, begin, end), positions)
        read = {"input_ids": ids} if ids.dim() == 2 else {"inputs_embeds": embed_positions(self._table, ids)}
        out = self.backbone(
            **read,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **{self._cache_name: self.cache},
        )
        return out.last_hidden_state if every else out.last_hidden_state[:, -1]

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
        if not self._windows.by_layer:
            return add(near)
        return {"full_attention": add(seen), "sliding_attention": add(near)}

    def commit(self, kept: Sequence[Sequence[int]], num_new: int) -> None:
        from unimodal.generation.decoders.reference_cache import check_whole

        moves, length = plan_moves(self.pads.tolist(), kept, self.length, num_new)
        slots = [[*([0] * move.pad), *move.slots] for move in moves]
        index = torch.tensor(slots, dtype=torch.int64, device=self.pads.device)  # [S, C] slots to take
        self.pads = torch.tensor([move.pad for move in moves], dtype=torch.int64, device=self.pads.device)
        for layer in self.cache.layers:
            check_whole(layer, "cut; use the plain decoder")
            layer.keys, layer.values = (
                held.gather(2, index[:, None, :, None].expand(-1, held.shape[1], -1, held.shape[3]))
                for held in (layer.keys, layer.values)  # [S, K, C, W]
            )
        self.places = self.places.gather(1, index)
        self.length = length

    def keep(self, streams: Sequence[int]) -> None:
        from unimodal.generation.decoders.reference_cache import is_whole

        index = torch.tensor(list(streams), dtype=torch.int64, device=self.pads.device)
        self.pads, self.places = self.pads[index], self.places[index]
        self.cache.batch_select_indices(index)
        if all(is_whole(layer) for layer in self.cache.layers):
            self.pads, gap = close_gap(self.pads)
            self.length -= gap
            self.places = self.places[:, gap:]
            for layer in self.cache.layers if gap else ():
                layer.keys, layer.values = layer.keys[:, :, gap:], layer.values[:, :, gap:]

    def export(self, stream: int) -> StreamCache:
        pad = int(self.pads[stream])
        held = [part for layer in self.cache.layers for part in (layer.keys, layer.values)]
        return StreamCache([part[stream, :, pad:].clone() for part in held])

    def count_read(self, stream: int) -> int:
        return self.length - int(self.pads[stream])

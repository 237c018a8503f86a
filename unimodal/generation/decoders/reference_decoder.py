"""Cached decoding through the model's own forward: what the lean decoder must equal, and what other architectures use.

The cache has room for the whole answer from the start (`reference_cache.py`), so that a step copies none of it.

Shapes: S streams, P tokens of a step, C slots in all, K key/value heads, W head width, D width.
"""

from __future__ import annotations

import inspect
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
from unimodal.generation.decoders.step_decoder import Prefix, StreamCache

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel


class ReferenceDecoder:
    """A `StepDecoder`, where the methods are described, over any causal LM: its forward with a cache of its kind, a
    padding mask and explicit positions."""

    cache: DynamicCache
    length: int  # slots in use
    pads: Tensor  # int64 [S], slots of left padding
    num_computed: int

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.backbone: PreTrainedModel = model.get_decoder()
        names = inspect.signature(type(self.backbone).forward).parameters  # transformers renamed it in 5.24
        self._cache_name = "cache" if "cache" in names else "past_key_values"

    @property
    def intercepted(self) -> bool:
        """Whether something stands in for the forward of this one model, as compression does."""
        return "forward" in vars(self.backbone)

    def prefill(
        self, prompts: Sequence[Sequence[int]], pad_id: int, capacity: int, prefixes: Sequence[Prefix | None] = ()
    ) -> Tensor:
        from unimodal.generation.decoders.reference_cache import make_cache

        device = next(self.backbone.parameters()).device
        ids, self.pads = pad_left(prompts, pad_id, device)
        self.cache = make_cache(self.backbone.config, capacity)
        self.length = 0
        self.num_computed = count_unread(prompts, prefixes)
        first = ids.shape[1] - self.num_computed
        if first > 0:
            given = next(prefix for prefix in prefixes if prefix is not None)
            for number, (key, _) in enumerate(given.cache.layers):
                shape = (len(prompts), key.shape[0], first, key.shape[2])
                keys, values = key.new_zeros(shape), key.new_zeros(shape)
                for stream, prefix in enumerate(prefixes):
                    pad = int(self.pads[stream])
                    if prefix is not None and pad < first:
                        own_keys, own_values = prefix.cache.layers[number]
                        keys[stream, :, pad:] = own_keys[:, : first - pad]
                        values[stream, :, pad:] = own_values[:, : first - pad]
                self.cache.update(keys, values, number)
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
        if visible is None:
            mask = (torch.arange(end, device=ids.device)[None, :] >= self.pads[:, None]).long()  # [S, end]
        else:
            mask = build_visible_mask(visible, self.pads, begin, end)[:, None]  # [S, 1, P, end]
        out = self.backbone(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **{self._cache_name: self.cache},
        )
        return out.last_hidden_state if every else out.last_hidden_state[:, -1]

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
        self.length = length

    def keep(self, streams: Sequence[int]) -> None:
        from unimodal.generation.decoders.reference_cache import is_whole

        index = torch.tensor(list(streams), dtype=torch.int64, device=self.pads.device)
        self.pads = self.pads[index]
        self.cache.batch_select_indices(index)
        if all(is_whole(layer) for layer in self.cache.layers):
            self.pads, gap = close_gap(self.pads)
            self.length -= gap
            for layer in self.cache.layers if gap else ():
                layer.keys, layer.values = layer.keys[:, :, gap:], layer.values[:, :, gap:]

    def export(self, stream: int) -> StreamCache:
        pad = int(self.pads[stream])
        return StreamCache(
            [
                (layer.keys[stream, :, pad:].clone(), layer.values[stream, :, pad:].clone())
                for layer in self.cache.layers
            ]
        )

    def count_read(self, stream: int) -> int:
        return self.length - int(self.pads[stream])

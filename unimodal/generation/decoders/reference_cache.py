"""The cache of the reference decoder: a stock DynamicCache whose layers write into room that was made once.

A stock layer joins the old keys and the new ones to a new tensor at every step: for each token the whole cache is
copied, which late in a long sequence costs more than everything else. Layers that are no plain DynamicLayer (a sliding
window) stay as they are. Whoever puts other tensors in the place of `keys` and `values`, as cutting and selecting
streams do, is heeded: the next step makes room for those.

Shapes: S streams, K key/value heads, L slots in use, C capacity, W head width.
"""

from __future__ import annotations

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin, DynamicLayer


class RoomyLayer(DynamicLayer):
    """A DynamicLayer with room for ``capacity`` slots; `keys` and `values` [S, K, L, W] are views of what is in use."""

    keys: Tensor
    values: Tensor

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self._views: tuple[Tensor, Tensor] | None = None
        self._room: tuple[Tensor, Tensor]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append keys and values [S, K, P, W] and return all, [S, K, L + P, W]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.keys, self.values
        begin = keys.shape[-2] if keys.numel() else 0
        end = begin + key_states.shape[-2]
        if self._views is None or keys is not self._views[0] or end > self._room[0].shape[2]:
            size = self.capacity if end <= self.capacity else end + end // 4
            shape = (*key_states.shape[:2], size)
            room = [states.new_empty((*shape, states.shape[-1])) for states in (key_states, value_states)]
            for new, held in zip(room, (keys, values), strict=True):
                if begin:
                    new[:, :, :begin] = held
            self._room = (room[0], room[1])
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, begin:end] = states
        self._views = (self._room[0][:, :, :end], self._room[1][:, :, :end])
        self.keys, self.values = self._views
        return self._views


def make_cache(config: PreTrainedConfig, capacity: int) -> DynamicCache:
    """A DynamicCache for this model whose full-attention layers have room for ``capacity`` slots."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def is_whole(layer: CacheLayerMixin) -> bool:
    """Whether a layer holds every token, as one with a sliding window does not."""
    return type(layer) in (DynamicLayer, RoomyLayer)


def check_whole(layer: CacheLayerMixin, done: str) -> None:
    """ValueError for a layer that does not hold every token (a sliding window), so that it cannot be ``done``."""
    if not is_whole(layer):
        raise ValueError(f"a cache layer of type {type(layer).__name__} cannot be {done}")

"""The cache of the reference decoder: a stock DynamicCache whose layers write into memory that is allocated once.

A stock layer joins old and new keys into a new tensor at every step. That copies the whole cache for each token, which
late in a long sequence costs more than everything else. Layers with a sliding window hold what the mask of the next
tokens lets them see, and some more, so that they are moved once in many steps; a stock layer drops all else at once and
could not take tokens back. `keys` and `values` may be replaced, as cutting and selecting streams do; the next step
allocates memory for the new ones.

Shapes: S streams, K key/value heads, L slots in use, C capacity, W head width.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from unimodal.generation.decoders.cache_size import LayersSize

_SPARE = 64  # slots that a layer with a window has beyond it


class RoomyLayer(DynamicLayer):
    """A DynamicLayer with room for ``capacity`` slots; `keys` and `values` [S, K, L, W] are views of used slots."""

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


class WindowLayer(RoomyLayer):
    """A RoomyLayer whose first ``dropped`` slots are gone, since no window reaches them any more."""

    is_sliding = True

    def __init__(self, capacity: int, window: int) -> None:
        super().__init__(min(capacity, window + _SPARE))
        self.window, self.dropped = window, 0

    @property
    def num_held(self) -> int:
        return self.keys.shape[-2] if self.is_initialized and self.keys.numel() else 0

    def get_seq_length(self) -> int:
        return self.dropped + self.num_held

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.num_held + query_length, self.dropped

    def drop(self, first: int) -> None:
        """Let go the slots before slot ``first``."""
        gone = min(first - self.dropped, self.num_held)
        if gone > 0:
            self.keys, self.values = self.keys[:, :, gone:], self.values[:, :, gone:]
            self.dropped += gone


def make_cache(config: PreTrainedConfig, capacity: int, whole: bool = False) -> DynamicCache:
    """A DynamicCache for this model, of layers with room for ``capacity`` slots.

    whole: also those with windows hold every token.
    """
    cache = DynamicCache(config=config)
    layers: list[CacheLayerMixin] = []
    for layer in cache.layers:
        if isinstance(layer, DynamicSlidingWindowLayer) and not whole:
            layers.append(WindowLayer(capacity, int(layer.sliding_window)))
        elif type(layer) in (DynamicLayer, DynamicSlidingWindowLayer):
            layers.append(RoomyLayer(capacity))
        else:
            layers.append(layer)
    cache.layers = layers
    return cache


def is_whole(layer: CacheLayerMixin) -> bool:
    """Whether a layer holds keys and values of every token that is seen, and not a state that sums them up."""
    return type(layer) in (DynamicLayer, RoomyLayer, WindowLayer)


def check_whole(layer: CacheLayerMixin, done: str) -> None:
    """Raises ValueError for a layer that is not whole (`is_whole`). done: what it then cannot be, for the message."""
    if not is_whole(layer):
        raise ValueError(f"a cache layer of type {type(layer).__name__} cannot be {done}")


def weigh_layer(layer: CacheLayerMixin) -> int:
    """The bytes that a layer takes for keys and values; 0 for one that holds something else."""
    held = getattr(layer, "_room", None) or (getattr(layer, "keys", None), getattr(layer, "values", None))
    return sum(part.numel() * part.element_size() for part in held if isinstance(part, Tensor))


def measure_layers(backbone: PreTrainedModel, cache_name: str) -> list[LayersSize]:
    """What the layers of a model keep of a token, found out by reading one."""
    cache = DynamicCache(config=backbone.config)
    ids = torch.zeros(1, 1, dtype=torch.int64, device=next(backbone.parameters()).device)
    backbone(input_ids=ids, use_cache=True, **{cache_name: cache})
    sizes: dict[int | None, int] = {}
    for layer in cache.layers:
        window = int(layer.sliding_window) if isinstance(layer, DynamicSlidingWindowLayer) else None
        sizes[window] = sizes.get(window, 0) + weigh_layer(layer)
    return [LayersSize(num_bytes, window) for window, num_bytes in sizes.items()]

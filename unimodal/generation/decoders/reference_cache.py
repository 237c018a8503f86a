"""The cache of the reference decoder: a stock DynamicCache whose layers write into memory that is allocated once.

A stock layer joins old and new keys into a new tensor at every step. That copies the whole cache for each token, which
late in a long sequence costs more than everything else. Layers with a sliding window keep all tokens too, and the mask
applies the window: so streams of unequal lengths stand side by side, and a cache can be cut, reused for a later prompt
and joined by new streams. `keys` and `values` may be replaced, as cutting and selecting streams do; the next step
allocates memory for the new ones.

Shapes: S streams, K key/value heads, L slots in use, C capacity, W head width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer


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


def make_cache(config: PreTrainedConfig, capacity: int) -> DynamicCache:
    """A DynamicCache for this model, of layers with room for ``capacity`` slots."""
    cache = DynamicCache(config=config)
    held = (DynamicLayer, DynamicSlidingWindowLayer)
    cache.layers = [RoomyLayer(capacity) if type(layer) in held else layer for layer in cache.layers]
    return cache


def is_whole(layer: CacheLayerMixin) -> bool:
    """Whether a layer holds keys and values of every token, and not a state that sums them up."""
    return type(layer) in (DynamicLayer, RoomyLayer)


def check_whole(layer: CacheLayerMixin, done: str) -> None:
    """Raises ValueError for a layer that is not whole (`is_whole`). done: what it then cannot be, for the message."""
    if not is_whole(layer):
        raise ValueError(f"a cache layer of type {type(layer).__name__} cannot be {done}")


@dataclass(frozen=True)
class Windows:
    """A model's sliding window of ``length`` tokens.

    by_layer: whether the forward takes a mask for each kind of layer (`layer_types`), or one mask for all.
    """

    length: int
    by_layer: bool


def find_windows(config: PreTrainedConfig) -> Windows | None:
    """The sliding window of a model; None if all layers see all tokens."""
    kinds = [layer for layer in DynamicCache(config=config).layers if isinstance(layer, DynamicSlidingWindowLayer)]
    if not kinds:
        return None
    return Windows(min(layer.sliding_window for layer in kinds), bool(config.to_dict().get("layer_types")))

"""Sliding windows of a causal LM, and its masks where what a token sees is said token by token.

Shapes: S rows, P tokens, C slots or tokens that may be seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Windows:
    """A model's sliding window of ``length`` tokens.

    by_layer: whether the forward takes a mask for each kind of layer (`layer_types`), or one mask for all.
    """

    length: int
    by_layer: bool


def find_windows(config: PreTrainedConfig) -> Windows | None:
    """The sliding window of a model; None if all layers see all tokens."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicSlidingWindowLayer

    kinds = [layer for layer in DynamicCache(config=config).layers if isinstance(layer, DynamicSlidingWindowLayer)]
    if not kinds:
        return None
    return Windows(min(layer.sliding_window for layer in kinds), bool(config.to_dict().get("layer_types")))


def make_layer_masks(
    seen: Tensor, positions: Tensor, places: Tensor, windows: Windows | None, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """The mask that a forward adds to the scores, [S, 1, P, C]: one for all layers, or by kind of layer.

    seen: bool [S, P, C], what each token sees where there is no window. positions: int64 [S, P], of the tokens. places:
    int64 [S, C], the positions of what they see. A window hides what lies too far behind, nothing that lies ahead.
    """
    lowest = torch.finfo(dtype).min

    def add(mask: Tensor) -> Tensor:  # "eager" takes no bools
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, lowest)[:, None]

    if windows is None:
        return add(seen)
    near = seen & (positions[:, :, None] - places[:, None] < windows.length)
    if not windows.by_layer:
        return add(near)
    return {"full_attention": add(seen), "sliding_attention": add(near)}

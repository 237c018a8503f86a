"""Greedy answers behind a cache that others share, and what a cache takes: for the benches of compression.

Shapes: B rows, N tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unimodal.compression.running.slots import SlotLayer
from unimodal.model.base_check import find_cache_name

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel


@torch.inference_mode()
def continue_greedily(
    model: PreTrainedModel, ids: Sequence[int], cache: DynamicCache, tokens: int, ends: Collection[int],
    allowed: Tensor | None = None,
) -> list[int]:  # fmt: skip
    """Read ids [N] behind what is in the cache, and write at most so many tokens, up to one of `ends`, which is told.

    allowed: bool [V], the rows to choose from; by default all. The cache grows: give a copy of one that is read again.
    """
    written: list[int] = []
    new = torch.tensor([list(ids)], device=model.device)
    while len(written) < tokens:
        logits: Tensor = model(new, **{find_cache_name(model): cache}, use_cache=True, logits_to_keep=1).logits
        last = logits[0, -1] if allowed is None else logits[0, -1].masked_fill(~allowed, -torch.inf)
        written.append(int(last.argmax()))
        if written[-1] in ends:
            break
        new = torch.tensor([written[-1:]], device=model.device)
    return written


def count_cache_bytes(cache: DynamicCache) -> int:
    """The bytes that a cache holds: keys and values as they are or packed, and states in the place of entries."""
    total = 0
    for layer in cache.layers:
        held = [layer.keys, layer.values]
        if isinstance(layer, SlotLayer):
            held += [] if layer.packed is None else layer.packed.list_tensors()
            held += [state.summary for state in layer.states if state.summary is not None]
        total += sum(tensor.numel() * tensor.element_size() for tensor in held)
    return total

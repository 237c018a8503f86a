"""Greedy answers behind a cache that others share, and what a cache takes: for the benches of compression.

Shapes: B rows, N tokens, L tokens that a cache has read.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
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


@torch.inference_mode()
def continue_rows(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], cache: DynamicCache, tokens: int, ends: Collection[int],
    allowed: Tensor | None = None, is_settled: Callable[[int, Sequence[int]], bool] | None = None,
) -> list[list[int]]:  # fmt: skip
    """What `continue_greedily` writes behind each of B rows of ids, all of which find the same cache of one row.

    They are read at once, with padding in front of the shorter ones; the cache stays as it is. is_settled: (row, ids
    that were written) → whether the row may stop before its end.
    """
    read, longest = cache.get_seq_length(), max(map(len, rows))
    cache = copy.deepcopy(cache)
    if read and len(rows) > 1:
        cache.batch_repeat_interleave(len(rows))
    pads = [longest - len(row) for row in rows]
    new = torch.tensor([[0] * pad + list(row) for pad, row in zip(pads, rows, strict=True)], device=model.device)
    own = torch.tensor([[0] * pad + [1] * len(row) for pad, row in zip(pads, rows, strict=True)], device=model.device)
    mask = torch.cat([own.new_ones(len(rows), read), own], 1)  # [B, L + N]
    written: list[list[int]] = [[] for _ in rows]
    open_rows = set(range(len(rows)))
    for _ in range(tokens):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
        logits: Tensor = model(
            new, attention_mask=mask, position_ids=positions, **{find_cache_name(model): cache}, use_cache=True,
            logits_to_keep=1,
        ).logits  # fmt: skip
        last = logits[:, -1] if allowed is None else logits[:, -1].masked_fill(~allowed, -torch.inf)
        new = last.argmax(-1, keepdim=True)
        for row in list(open_rows):
            written[row].append(int(new[row]))
            if written[row][-1] in ends or is_settled is not None and is_settled(row, written[row]):
                open_rows.remove(row)
        if not open_rows:
            break
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
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

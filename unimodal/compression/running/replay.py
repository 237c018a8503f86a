"""Reads a prompt a second time behind itself, and drops the entries that nobody looked at, in all layers together.

What a model attends to while it repeats a text is what the text can be told from. The second reading leaves nothing in
the cache.

Shapes: B rows, H query heads, K key/value heads, L slots, M slots kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unimodal.compression.running.attention_rows import compute_attention_rows
from unimodal.compression.running.cache_executor import index_slots, plan_eviction
from unimodal.compression.running.contracts import CacheMethod
from unimodal.compression.running.look import Look
from unimodal.compression.running.slots import SlotLayer

QUERIES = 256  # rows of attention in memory at a time
FIRST = 2.0  # above any attention


class ReplayProbe:
    """The `CacheWatcher` of a second reading: notes the most attention that each entry gets from any query and head.

    scores: by layer, [B, K, L], the second reading's own entries included. looks: the layers as they were.
    """

    acts: ClassVar[Literal["watch"]] = "watch"

    def __init__(self) -> None:
        self.scores: dict[int, Tensor] = {}
        self.looks: dict[int, Look] = {}

    def observe(self, look: Look) -> None:
        num = look.query.shape[2]
        at, valid = look.find_newest(num), look.slots.valid[:, -num:]
        most = torch.zeros((*look.query.shape[:2], look.keys.shape[2]), device=look.keys.device)
        for start in range(0, num, QUERIES):
            part = slice(start, start + QUERIES)
            probs = compute_attention_rows(look.query[:, :, part], look.keys, at[:, part], look.slots, look.rule)
            most = torch.maximum(most, (probs * valid[:, None, part, None]).amax(2))
        self.scores[look.index] = most.unflatten(1, (look.keys.shape[1], -1)).amax(2)
        self.looks[look.index] = look


@torch.no_grad()
def evict_by_replay(
    method: CacheMethod, number: int, layers: Sequence[SlotLayer], read_again: Callable[[ReplayProbe], None]
) -> None:
    """Let `read_again` run the prompt once more, and drop entries of all layers by what it attended to.

    number: the method's among those for the cache. Entries of earlier turns keep the scores that they had.
    """
    probe, sinks = ReplayProbe(), method.repetition[1]
    saved = [(layer.slots, layer.keys, layer.values, layer.packed) for layer in layers]
    read_again(probe)
    worths, budgets = [], []
    for index, (layer, held) in enumerate(zip(layers, saved, strict=True)):
        layer.slots, layer.keys, layer.values, layer.packed = held
        slots, state = layer.slots, layer.get_state(number)
        assert slots is not None and state.num_evictable is not None
        scores = probe.scores[index][..., : len(slots)]
        if state.score is not None:
            scores = torch.cat([state.score, scores[..., state.score.shape[-1] :]], -1)
        state.score = scores
        free = (slots.evictable & slots.find_held()).expand_as(scores)
        worths.append(scores.masked_fill(slots.find_first(sinks), FIRST).masked_fill(~free, -torch.inf))
        budgets.append(state.num_evictable * method.keep * scores.shape[1])
    whole = torch.cat([worth.flatten(1) for worth in worths], 1)
    rank = whole.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    stays = (rank < torch.stack(budgets).sum(0).round()[:, None]) & ~whole.isneginf()
    parts = stays.split([worth[0].numel() for worth in worths], 1)
    for index, (layer, worth, part) in enumerate(zip(layers, worths, parts, strict=True)):
        slots = layer.slots
        assert slots is not None
        held_now = slots.find_held().expand_as(worth)
        keep = (held_now & worth.isneginf()) | part.reshape(worth.shape)
        if not bool((keep == held_now).all()):
            chosen, valid = index_slots(keep)
            look = replace(probe.looks[index], slots=slots, layer=layer)
            layer.evict(chosen, *plan_eviction(method, look, keep, chosen, valid))

"""Applies the scores of a cache method: drops entries of a cache layer, or lets each head attend to some of them.

Every head keeps its own entries, but all heads of a row keep as many, so that a layer stays one tensor; rows that keep
fewer are padded on the left. Keys stay at their positions, or are rotated to compacted ones.

Shapes: B rows, H query heads, K key/value heads, Q new tokens, L slots, M slots kept, W head width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from unimodal.compression.running.contracts import CacheMethod
from unimodal.compression.running.interception import AttentionOutput, LayerAttention
from unimodal.compression.running.look import Look
from unimodal.compression.running.rotation import rotate_by
from unimodal.compression.running.slots import Slots

FIRST = 1e6  # above any score


def choose_slots(scores: Tensor, slots: Slots, budget: Tensor, recent: int) -> Tensor:
    """Which slots stay, bool [B, K, L]: all that are not evictable, and each head's best of the others.

    scores: [B, K, L]. budget: int64 [B], the number of evictable slots that stay. recent: within the budget, the newest
    so many slots stay before all others.
    """
    free = slots.evictable & slots.valid[:, None]  # [B, K or 1, L]
    if recent:
        place = torch.arange(len(slots), device=free.device)
        scores = torch.where(place < len(slots) - recent, scores.float(), FIRST + place)
    ranked = scores.masked_fill(~free, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(ranked).scatter_(
        -1, ranked, torch.arange(len(slots), device=ranked.device).expand_as(ranked)
    )
    return (slots.valid[:, None] & ~free) | (free & (rank < budget[:, None, None]))


def index_slots(keep: Tensor) -> tuple[Tensor, Tensor]:
    """keep bool [B, K, L] → index int64 [B, K, M], padded on the left, and valid bool [B, M].

    All heads of a row must keep as many.
    """
    counts = keep[:, 0].sum(-1)  # [B]
    width = max(int(counts.max()), 1)
    index = keep.long().argsort(dim=-1, stable=True)[..., keep.shape[-1] - width :]
    return index, torch.arange(width, device=keep.device) >= width - counts[:, None]


def attend_compressed(method: CacheMethod, look: Look, attention: LayerAttention, may_evict: bool) -> AttentionOutput:
    """Compute one layer's attention under a cache method; then evict entries, if `may_evict`."""
    if method.acts == "select":
        if look.first:
            method.observe(look)
        elif method.keep < 1:
            return _attend_selected(method, look, attention)
    if method.acts == "prefill" and look.first and method.keep < 1:
        return _attend_sparsely(method, look, attention)
    out = attention.compute()
    if method.acts == "evict" and may_evict and method.keep < 1 and (look.first or method.at_every_step):
        _evict(method, look)
    return out


def _count_budget(method: CacheMethod, slots: Slots) -> Tensor:
    """The number of evictable entries that stay, int64 [B]."""
    num = (slots.evictable[:, 0] & slots.valid).sum(1)  # the same number in all heads
    return (num * method.keep).round().long().clamp(min=1)


def _choose(method: CacheMethod, look: Look) -> tuple[Tensor, Tensor]:
    """The entries to attend to, for a method that drops none: index int64 [B, K, M] and valid bool [B, M]."""
    return index_slots(choose_slots(method.score(look), look.slots, _count_budget(method, look.slots), method.recent))


def _evict(method: CacheMethod, look: Look) -> None:
    layer = look.layer
    scores = method.score(look)
    if look.first:
        layer.budget = _count_budget(method, look.slots)
    assert layer.budget is not None
    keep = choose_slots(scores, look.slots, layer.budget, method.recent)
    if not bool((keep == look.slots.valid[:, None]).all()):
        index, valid = index_slots(keep)
        layer.evict(index, *_plan_eviction(method, look, keep, index, valid))


def _plan_eviction(
    method: CacheMethod, look: Look, keep: Tensor, index: Tensor, valid: Tensor
) -> tuple[Slots, Callable[[Tensor], Tensor] | None]:
    """The slots that are left, and a function that rotates their keys to compacted positions, or None."""
    after = look.slots.take(index, valid)
    if method.positions == "kept":
        return after, None
    gone = (look.slots.valid[:, None] & ~keep).long().cumsum(-1)  # [B, K, L], each head counts its own
    offset = -gone.gather(-1, index)
    after = replace(after, positions=after.positions + offset, shift=look.slots.shift + gone[:, 0, -1])
    return after, lambda keys: rotate_by(look.rotary, keys, offset)


def _attend_selected(method: CacheMethod, look: Look, attention: LayerAttention) -> AttentionOutput:
    """The attention of a step over the entries that the method selects for every head."""
    query, key, value = attention.query, attention.key, attention.value
    index, valid = _choose(method, look)  # [B, K, M], [B, M]
    wide = index[..., None].expand(-1, -1, -1, key.shape[-1])
    num_new, groups = query.shape[2], query.shape[1] // key.shape[1]
    bias = look.slots.take(index, valid).make_bias(query.dtype, key.shape[1])  # [B, K or 1, M]
    later = index[:, :, None] > look.find_newest(num_new)[:, None, :, None]  # [B, K, Q, M]
    mask = bias.expand(-1, key.shape[1], -1)[:, :, None].masked_fill(later, -torch.inf).repeat_interleave(groups, 1)
    return attention.compute_with(query, key.gather(2, wide), value.gather(2, wide), mask)


def _attend_sparsely(method: CacheMethod, look: Look, attention: LayerAttention) -> AttentionOutput:
    """Dense attention among the tokens that each head selects; the others get zeros from this layer's attention."""
    query, key, value = attention.query, attention.key, attention.value
    index, valid = _choose(method, look)  # [B, K, M], [B, M]
    groups, size = query.shape[1] // key.shape[1], index.shape[-1]
    wide = index[..., None].expand(-1, -1, -1, query.shape[-1])
    wide_q = wide.repeat_interleave(groups, 1)
    bias = look.slots.take(index, valid).make_bias(query.dtype, key.shape[1]).expand(-1, key.shape[1], -1)
    later = torch.ones(size, size, dtype=torch.bool, device=key.device).triu(1)
    blind = torch.eye(size, dtype=torch.bool, device=key.device) & ~valid[:, None, :, None]
    mask = bias[:, :, None].masked_fill(later, -torch.inf).masked_fill(blind, 0.0).repeat_interleave(groups, 1)
    out, _ = attention.compute_with(query.gather(2, wide_q), key.gather(2, wide), value.gather(2, wide), mask)
    out = out.transpose(1, 2) * valid[:, None, :, None]  # [B, H, M, W]
    # padding on the left repeats slots: add, so that its zeros change nothing
    return query.new_zeros(query.shape).scatter_add(2, wide_q, out).transpose(1, 2).contiguous(), None

"""Applies the scores of a cache method: drops entries of a cache layer, or lets each head attend to some of them.

Every head keeps its own entries. A layer stays one tensor: heads and rows that keep fewer are padded on the left. Keys
stay at their positions, or are rotated to compacted ones. Several methods that evict act in their order: each chooses
among what the one before leaves.

Shapes: B rows, H query heads, K key/value heads, Q new tokens, L slots, M slots kept, W head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.compression.running.contracts import CacheMethod, CacheWatcher
from unimodal.compression.running.interception import AttentionOutput, LayerAttention
from unimodal.compression.running.look import Look
from unimodal.compression.running.slots import Slots, gather_slots

FIRST = 1e6  # above any score


def choose_slots(scores: Tensor, slots: Slots, budget: Tensor, recent: Tensor, among: Tensor | None = None) -> Tensor:
    """Which slots stay, bool [B, K, L]: all that are not evictable, and each head's best of the others.

    scores: [B, K, L]. budget: int64 [B], or [B, K] for each head, the number of evictable slots that stay. recent:
    int64 [B], within the budget, the newest so many entries stay before all others. among: bool [B, K, L], the slots to
    choose from; by default those that are held.
    """
    held = slots.find_held() if among is None else among
    free = slots.evictable & held  # [B, K or 1, L]
    place = torch.arange(len(slots), device=free.device)
    worth = torch.where(slots.find_recent(recent), FIRST + place, scores.float())
    ranked = worth.masked_fill(~free, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(ranked).scatter_(-1, ranked, place.expand_as(ranked))
    by_head = budget[:, None, None] if budget.ndim == 1 else budget[..., None]
    return (held & ~free) | (free & (rank < by_head))


def index_slots(keep: Tensor) -> tuple[Tensor, Tensor]:
    """keep bool [B, K, L] → index int64 [B, K, M], padded on the left, and valid bool [B, K, M]."""
    counts = keep.sum(-1, keepdim=True)  # [B, K, 1]
    width = max(int(counts.max()), 1)
    index = keep.long().argsort(dim=-1, stable=True)[..., keep.shape[-1] - width :]
    return index, torch.arange(width, device=keep.device) >= width - counts


def attend_compressed(
    methods: Sequence[CacheMethod | CacheWatcher], look: Look, attention: LayerAttention, may_evict: bool
) -> AttentionOutput:
    """Compute one layer's attention under cache methods; then evict entries, if `may_evict`."""
    active: list[tuple[CacheMethod, Look]] = []
    for number, method in enumerate(methods):
        own = replace(look, number=number)
        if method.acts == "watch":
            _observe(method, own)
        elif method.keep < 1 and method.is_active(own):
            active.append((method, own))
    mixing = [pair for pair in active if pair[0].acts == "mix"]
    if mixing:
        return _mix(*mixing[0], attention, may_evict)
    out = _attend([pair for pair in active if pair[0].acts in ("select", "prefill")], attention)
    evicting = [pair for pair in active if pair[0].acts == "evict"]
    if may_evict and evicting:
        _evict(evicting)
    for method, own in active:
        if may_evict and method.acts == "replay":
            _count_tokens(own)
        if may_evict and method.acts == "store" and look.reads:
            _pack(method, own)
    return out


def _mix(method: CacheMethod, look: Look, attention: LayerAttention, may_evict: bool) -> AttentionOutput:
    """The attention as a method computes it; the entries that it turned into its state go."""
    look = replace(look, query=attention.query, keys=attention.key, values=attention.value)
    mixed = method.mix(look)
    if mixed is None:
        return attention.compute()
    out, gone, told = mixed
    if may_evict and bool(gone.any()):
        state = look.state
        state.summary = told if state.summary is None else state.summary + told
        keep = look.slots.find_held() & ~gone
        index, valid = index_slots(keep.expand(-1, look.keys.shape[1], -1))
        look.layer.evict(index, *plan_eviction(method, look, keep, index, valid))
    return out.to(attention.value.dtype), None


def _attend(choosing: list[tuple[CacheMethod, Look]], attention: LayerAttention) -> AttentionOutput:
    """The attention over what a method chooses to attend to; there is one such method, or none."""
    for method, look in choosing:
        if method.acts == "prefill" and look.first:
            return _attend_sparsely(method, look, attention)
        if method.acts == "select":
            size = None
            if look.reads:
                _observe(method, look)
                size = method.count_chunk(look.query.shape[2])
            if not look.reads or (size is not None and not (look.first and size == look.query.shape[2])):
                return _attend_in_chunks(method, look, attention)
    return attention.compute()


@torch.no_grad()
def _observe(method: CacheMethod | CacheWatcher, look: Look) -> None:
    method.observe(look)


def _count_tokens(look: Look) -> None:
    """Count the new tokens of a layer: evictable ones that were read, and steps of the answer."""
    state, num = look.state, look.query.shape[2]
    valid = look.slots.valid[:, -num:]
    if state.num_evictable is None or state.num_steps is None:
        state.num_evictable = state.num_steps = valid.new_zeros(len(valid), dtype=torch.int64)
    if look.reads:
        state.num_evictable = state.num_evictable + (look.slots.evictable[:, 0, -num:] & valid).sum(1)
    else:
        state.num_steps = state.num_steps + num


@torch.no_grad()
def _pack(method: CacheMethod, look: Look) -> None:
    """Pack what a method chooses of the entries that are left."""
    assert look.layer.slots is not None
    look.layer.pack(method.score(replace(look, slots=look.layer.slots)) > 0, *method.packing)


@torch.no_grad()
def _choose(method: CacheMethod, look: Look) -> tuple[Tensor, Tensor]:
    """The entries to attend to, for a method that drops none: index int64 [B, K, M] and valid bool [B, K, M].

    K is the number of heads that the method scores for.
    """
    slots, scores = look.slots, method.score(look)
    num = (slots.evictable & slots.find_held()).sum(-1).amax(1)
    kept = method.count_kept(look, scores, num)
    return index_slots(choose_slots(scores, slots, kept, method.count_recent(kept)))


@torch.no_grad()
def _evict(evicting: list[tuple[CacheMethod, Look]]) -> None:
    """Drop entries until the evictable ones are a share of all those that were read, in this call and before.

    Every method scores all entries; it keeps its share of what the method before it leaves, and chooses among that.
    """
    keep: Tensor | None = None
    before: Tensor | None = None
    for method, look in evicting:
        _count_tokens(look)
        state = look.state
        if look.reads or method.at_every_step:
            scores = method.score(look)
            num = state.num_evictable if before is None else before
            assert num is not None
            kept = method.count_kept(look, scores, num)
            keep = choose_slots(scores, look.slots, kept, method.count_recent(kept), keep)
            state.kept = kept if kept.ndim == 1 else kept.float().mean(1).round().long()
        before = state.num_evictable if state.kept is None else state.kept
    method, look = evicting[0]
    held = look.slots.find_held()
    if keep is not None and not bool((keep == held).all()):
        index, valid = index_slots(keep.expand(-1, look.keys.shape[1], -1))
        look.layer.evict(index, *plan_eviction(method, look, keep, index, valid))


def plan_eviction(
    method: CacheMethod, look: Look, keep: Tensor, index: Tensor, valid: Tensor
) -> tuple[Slots, Callable[[Tensor], Tensor] | None]:
    """The slots that are left, and a function that rotates their keys to compacted positions, or None."""
    after = look.slots.take(index, valid)
    if method.positions == "kept":
        return after, None
    gone = (look.slots.find_held() & ~keep).long().cumsum(-1)  # [B, K, L], each head counts its own
    shift = gone[..., -1].amin(1)  # [B]; heads that lost more close up to the end
    offset = gone[..., -1:] - shift[:, None, None] - gone.gather(-1, index)
    after = replace(after, positions=after.positions + offset, shift=look.slots.shift + shift)
    return after, lambda keys: look.rotation.rotate_by(keys, offset)


def _attend_in_chunks(method: CacheMethod, look: Look, attention: LayerAttention) -> AttentionOutput:
    """Attention over selected entries, chosen anew for every chunk of the new tokens.

    Chunks are counted from the end, where rows of a batch are aligned.
    """
    num, length = look.query.shape[2], len(look.slots)
    size = method.count_chunk(num) or num
    outs = []
    for start in range(num - (num - 1) // size * size - size, num, size):
        part, end = slice(max(start, 0), start + size), length - num + start + size
        one = replace(look, query=look.query[:, :, part], keys=look.keys[:, :, :end], slots=look.slots.cut(end))
        call = replace(
            attention,
            query=attention.query[:, :, part],
            key=attention.key[:, :, :end],
            value=attention.value[:, :, :end],
        )
        outs.append(_attend_selected(method, one, call))
    return torch.cat([out for out, _ in outs], 1), None


def _attend_selected(method: CacheMethod, look: Look, attention: LayerAttention) -> AttentionOutput:
    """The attention of a step over the entries that the method selects for every head."""
    query, key, value = attention.query, attention.key, attention.value
    index, valid = _choose(method, look)  # [B, K, M]
    mask = make_selected_mask(look, index, valid, look.find_newest(query.shape[2]), query.dtype)
    return attention.compute_with(query, gather_slots(key, index), gather_slots(value, index), mask)


def make_selected_mask(look: Look, index: Tensor, valid: Tensor, at: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask [B, H, Q, M] of queries at slots `at` int64 [B, Q] or [B, K, Q] over the slots index int64 [B, K, M].

    valid: bool [B, K, M].
    """
    num_heads, num_groups = look.query.shape[1], index.shape[1]
    bias = look.slots.take(index, valid).make_bias(dtype, num_groups).expand(-1, num_groups, -1)  # [B, K, M]
    own = at[:, None].expand(-1, num_groups, -1) if at.ndim == 2 else at
    hidden = index[:, :, None] > own[..., None]  # [B, K, Q, M]
    if look.rule.window is not None:
        positions = look.slots.positions.expand(-1, num_groups, -1)
        gap = positions.gather(2, own)[..., None] - positions.gather(2, index)[:, :, None]
        hidden = hidden | (gap >= look.rule.window)
    mask = bias[:, :, None].masked_fill(hidden, -torch.inf)
    blind = mask.isneginf().all(-1, keepdim=True)  # padding
    return mask.masked_fill(blind, 0.0).repeat_interleave(num_heads // num_groups, 1)


def _attend_sparsely(method: CacheMethod, look: Look, attention: LayerAttention) -> AttentionOutput:
    """Dense attention among the tokens that each head selects; the others get zeros from this layer's attention."""
    index, valid = _choose(method, look)  # [B, K or H, M]
    num_heads = look.query.shape[1]
    index, valid = (x.repeat_interleave(num_heads // x.shape[1], 1) for x in (index, valid))  # [B, H, M]
    query = attention.query
    key, value = (x.repeat_interleave(num_heads // x.shape[1], 1) for x in (attention.key, attention.value))
    mask = make_selected_mask(look, index, valid, index, query.dtype)
    chosen = (gather_slots(query, index), gather_slots(key, index), gather_slots(value, index))
    # torch's kernel: every head has keys of its own now, and the model's would repeat them for its groups
    out = F.scaled_dot_product_attention(*chosen, attn_mask=mask, scale=look.rule.scaling)
    out = out * valid[..., None]  # [B, H, M, W]
    # padding on the left repeats slots: add, so that its zeros change nothing
    wide = index[..., None].expand(-1, -1, -1, out.shape[-1])
    whole = out.new_zeros((*query.shape[:3], out.shape[-1])).scatter_add(2, wide, out)
    return whole.transpose(1, 2).contiguous(), None

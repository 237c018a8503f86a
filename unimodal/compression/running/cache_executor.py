"""Applies the scores of a cache method: drops entries of a cache layer, or lets each head attend to some of them.

Every head keeps its own entries but all heads of a row as many, so that a layer stays one tensor; rows that keep fewer
have padding in front. A dropped entry takes no rotation with it: keys keep the positions they were rotated to, or are
rotated to compacted ones.

Shapes: B rows, H query heads, K key/value heads, Q new tokens, L slots, M slots kept, W head width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from unimodal.compression.kv.method import CacheCompressor, Look
from unimodal.compression.running.rotation import rotated_by
from unimodal.compression.running.slots import SlotLayer, Slots

FIRST = 1e6  # above any score


def kept_slots(scores: Tensor, slots: Slots, budget: Tensor, recent: int) -> Tensor:
    """bool [B, K, L]: everything that may not go, and of the rest the best `budget` int64 [B] of every head.

    The newest `recent` slots come before all others, within the budget.
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


def gathered(keep: Tensor) -> tuple[Tensor, Tensor]:
    """bool [B, K, L], as many in all heads of a row -> index int64 [B, K, M], padding in front, and valid [B, M]."""
    counts = keep[:, 0].sum(-1)  # [B]
    width = max(int(counts.max()), 1)
    index = keep.long().argsort(dim=-1, stable=True)[..., keep.shape[-1] - width :]
    return index, torch.arange(width, device=keep.device) >= width - counts[:, None]


class CacheExecutor:
    """One layer of one call."""

    def __init__(self, method: CacheCompressor, rotary: nn.Module, call: Any) -> None:
        self.method, self.rotary, self.call = method, rotary, call

    def attend(self, module: nn.Module, kernel: Any, query: Tensor, key: Tensor, value: Tensor,
               mask: Tensor | None, kwargs: dict[str, Any]) -> Any:  # fmt: skip
        method, slots = self.method, self.call.slots
        layer = self.call.cache_layer if self.call.cache_layer is not None else SlotLayer()
        look = Look(query, key, slots, layer, self.call.executor.scaling, self.rotary, self.call.first)
        if method.acts == "select":
            if self.call.first:
                method.observe(look)
            elif method.keep < 1:
                return self._selected(look, module, kernel, query, key, value, mask, kwargs)
        if method.acts == "prefill" and self.call.first and method.keep < 1:
            return self._sparse(look, module, kernel, query, key, value, kwargs)
        out = kernel(module, query, key, value, mask, **kwargs)
        if method.acts == "evict" and self.call.cache_layer is not None and method.keep < 1:
            self._evict(look)
        return out

    def budget(self, slots: Slots) -> Tensor:
        """How many of the entries that may go stay, int64 [B]."""
        num = (slots.evictable[:, 0] & slots.valid).sum(1)  # heads hold as many of them
        return (num * self.method.keep).round().long().clamp(min=1)

    def _evict(self, look: Look) -> None:
        method, layer = self.method, look.layer
        if not self.call.first and not method.at_every_step:
            return
        scores = method.scores(look)
        if self.call.first:
            layer.budget = self.budget(look.slots)
        assert layer.budget is not None
        keep = kept_slots(scores, look.slots, layer.budget, method.recent)
        if bool((keep == look.slots.valid[:, None]).all()):
            layer.slots = None  # the executor takes the joined slots
            layer.slots = look.slots
            return
        index, valid = gathered(keep)
        layer.evict(index, *self._after(look.slots, index, valid, keep))

    def _after(self, slots: Slots, index: Tensor, valid: Tensor, keep: Tensor) -> tuple[Slots, Any]:
        """The slots after an eviction, and how kept keys are rotated again."""
        after, move = slots.taken(index, valid), None
        if self.method.positions == "compacted":
            gone = (slots.valid[:, None] & ~keep).long().cumsum(-1)  # [B, K, L], each head counts its own
            offset = -gone.gather(-1, index)
            after = replace(after, positions=after.positions + offset, shift=slots.shift + gone[:, 0, -1])

            def move(keys: Tensor) -> Tensor:
                return rotated_by(self.rotary, keys, offset)

        return after, move

    def _selected(self, look: Look, module: nn.Module, kernel: Any, query: Tensor, key: Tensor, value: Tensor,
                  mask: Tensor | None, kwargs: dict[str, Any]) -> Any:  # fmt: skip
        """The attention of a step over the entries that the method selects for every head."""
        keep = kept_slots(self.method.scores(look), look.slots, self.budget(look.slots), self.method.recent)
        index, valid = gathered(keep)  # [B, K, M]
        wide = index[..., None].expand(-1, -1, -1, key.shape[-1])
        num_new, groups = query.shape[2], query.shape[1] // key.shape[1]
        bias = look.slots.taken(index, valid).bias(query.dtype, key.shape[1]).expand(-1, key.shape[1], -1)  # [B, K, M]
        later = index[:, :, None] > look.newest(num_new)[:, None, :, None]  # [B, K, Q, M]
        chosen = bias[:, :, None].masked_fill(later, -torch.inf).repeat_interleave(groups, 1)
        return kernel(module, query, key.gather(2, wide), value.gather(2, wide), chosen, **kwargs)

    def _sparse(self, look: Look, module: nn.Module, kernel: Any, query: Tensor, key: Tensor, value: Tensor,
                kwargs: dict[str, Any]) -> Any:  # fmt: skip
        """Dense attention among the tokens that each head keeps; the others get nothing from this layer's attention."""
        keep = kept_slots(self.method.scores(look), look.slots, self.budget(look.slots), self.method.recent)
        index, valid = gathered(keep)  # [B, K, M]
        num_rows, num_heads, num, width = query.shape
        groups, size = num_heads // key.shape[1], index.shape[-1]
        wide = index[..., None].expand(-1, -1, -1, width)
        wide_q = wide.repeat_interleave(groups, 1)
        bias = look.slots.taken(index, valid).bias(query.dtype, key.shape[1]).expand(-1, key.shape[1], -1)[:, :, None]
        later = torch.ones(size, size, dtype=torch.bool, device=key.device).triu(1)
        blind = torch.eye(size, dtype=torch.bool, device=key.device) & ~valid[:, None, :, None]
        chosen = bias.masked_fill(later, -torch.inf).masked_fill(blind, 0.0).repeat_interleave(groups, 1)
        out, _ = kernel(module, query.gather(2, wide_q), key.gather(2, wide), value.gather(2, wide), chosen, **kwargs)
        out = out.transpose(1, 2) * valid[:, None, :, None]  # [B, H, M, W]
        # padding in front repeats slots: add, so that its zeros change nothing
        return query.new_zeros(query.shape).scatter_add(2, wide_q, out).transpose(1, 2).contiguous(), None

"""The input of a cache method: one layer of the decoder.

Shapes: B rows, H query heads, K key/value heads, Q new tokens, L slots of the cache layer, W head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unimodal.compression.running.attention_rows import AttentionRule, compute_attention_rows
from unimodal.compression.running.rotation import KeyRotation
from unimodal.compression.running.slots import MethodState, SlotLayer, Slots


@dataclass(eq=False)
class Look:
    """One layer after its queries and keys were computed and rotated.

    slots: of the L keys and values, the new ones included. layer: the cache layer. rule: how the layer makes logits.
    rotation: its positions. first: nothing was read before the new tokens. reads: the new tokens are a prompt or a
    later turn, and not one token of the answer. index: the layer's number among `num_layers`. number: the method's
    among those for the cache, by which the layer knows its memory.
    """

    query: Tensor  # [B, H, Q, W]
    keys: Tensor  # [B, K, L, W]
    values: Tensor  # [B, K, L, W], of a width of their own in some decoders
    slots: Slots
    layer: SlotLayer
    rule: AttentionRule
    rotation: KeyRotation
    first: bool
    reads: bool = True
    index: int = 0
    num_layers: int = 1
    number: int = 0

    @property
    def state(self) -> MethodState:
        """What the method remembers of this layer."""
        return self.layer.get_state(self.number)

    def attend_newest(self, num: int) -> Tensor:
        """The attention of the newest `num` tokens, float32 [B, H, num, L]; zeros for padding."""
        return self.attend(self.query[:, :, -num:], self.find_newest(num))

    def attend(self, query: Tensor, at: Tensor) -> Tensor:
        """The attention of query [B, H, num, W], in place of the newest `num` tokens' own, float32 [B, H, num, L].

        at: int64 [B, num], the slots where the queries stand; they see those up to their own.
        """
        num, length = query.shape[2], self.keys.shape[2]
        probs = compute_attention_rows(query, self.keys, at, self.slots, self.rule)
        return probs * self.slots.valid[:, None, length - num :, None]

    def find_newest(self, num: int) -> Tensor:
        """The slots of the newest `num` tokens, int64 [B, num]."""
        length = self.keys.shape[2]
        return torch.arange(length - num, length, device=self.keys.device).expand(len(self.keys), num)

    def find_window(self, size: int, is_behind_media: bool) -> Tensor:
        """Which of the newest n = min(size, Q) tokens observe, bool [B, n]; the last one always does.

        is_behind_media: only tokens behind the row's newest evictable one.
        """
        num = min(size, self.query.shape[2])
        observes = self.slots.valid[:, -num:]
        if is_behind_media:
            free = self.slots.evictable[:, 0, -num:].flip(-1).cumsum(-1).flip(-1)  # evictable ones from here on
            observes = observes & (free == 0)
        observes = observes.clone()
        observes[:, -1] = True
        return observes

    def average_groups(self, x: Tensor) -> Tensor:
        """[B, H, ...] → [B, K, ...], the mean over the query heads of each key/value head."""
        return x.unflatten(1, (self.keys.shape[1], -1)).mean(2)

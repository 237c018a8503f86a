"""The input of a cache method: one layer of the decoder.

Shapes: B rows, H query heads, K key/value heads, Q new tokens, L slots of the cache layer, W head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unimodal.compression.running.attention_rows import compute_attention_rows
from unimodal.compression.running.slots import SlotLayer, Slots


@dataclass(eq=False)
class Look:
    """One layer after its queries and keys were computed and rotated.

    slots: of the L keys, the new ones included. layer: the cache layer, where a method may remember scores.
    scaling: the factor of the attention's logits. rotary: the model's rotary module.
    first: whether the new tokens are a prompt with nothing before it.
    """

    query: Tensor  # [B, H, Q, W]
    keys: Tensor  # [B, K, L, W]
    slots: Slots
    layer: SlotLayer
    scaling: float
    rotary: nn.Module
    first: bool

    def attend_newest(self, num: int) -> Tensor:
        """The attention of the newest `num` tokens, float32 [B, H, num, L]; zeros for padding."""
        return self.attend(self.query[:, :, -num:])

    def attend(self, query: Tensor) -> Tensor:
        """The attention of query [B, H, num, W], in place of the newest `num` tokens' own, float32 [B, H, num, L]."""
        num, length = query.shape[2], self.keys.shape[2]
        at = self.find_newest(num)
        probs = compute_attention_rows(query, self.keys, at, self.slots, self.scaling)
        return probs * self.slots.valid[:, None, length - num :, None]

    def find_newest(self, num: int) -> Tensor:
        """The slots of the newest `num` tokens, int64 [B, num]."""
        length = self.keys.shape[2]
        return torch.arange(length - num, length, device=self.keys.device).expand(len(self.keys), num)

    def average_groups(self, x: Tensor) -> Tensor:
        """[B, H, L] → [B, K, L], the mean over the query heads of each key/value head."""
        return x.unflatten(1, (self.keys.shape[1], -1)).mean(2)

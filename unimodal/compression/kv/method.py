"""What a cache method is: it scores the entries of every head; the executor drops or selects by the scores.

Only entries that may go are compared: the codes of input spans, and with scope "prompt" the words too. Entries of media
that the model writes, and turn marks and span ends, always stay.

Shapes: B rows, H query heads, K key/value heads, Q new tokens, L slots, W head width.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from unimodal.compression.method import Method
from unimodal.compression.running.attention_rows import attention_rows
from unimodal.compression.running.slots import SlotLayer, Slots


@dataclass(eq=False)
class Look:
    """What a method sees of one layer after its keys were computed: queries and keys are rotated."""

    query: Tensor  # [B, H, Q, W]
    keys: Tensor  # [B, K, L, W]
    slots: Slots
    layer: SlotLayer
    scaling: float
    rotary: nn.Module
    first: bool  # the prompt, with nothing before it

    def rows(self, num: int) -> Tensor:
        """Attention of the newest `num` tokens, float32 [B, H, num, L]; zeros for padding."""
        return self.of(self.query[:, :, -num:])

    def of(self, query: Tensor) -> Tensor:
        """Attention of query [B, H, num, W] in the place of the newest `num` tokens."""
        num, length = query.shape[2], self.keys.shape[2]
        at = self.newest(num)
        probs = attention_rows(query, self.keys, at, self.slots, self.scaling)
        return probs * self.slots.valid[:, None, length - num :, None]

    def newest(self, num: int) -> Tensor:
        """The slots of the newest `num` tokens, int64 [B, num]."""
        length = self.keys.shape[2]
        return torch.arange(length - num, length, device=self.keys.device).expand(len(self.keys), num)

    def by_kv_head(self, x: Tensor) -> Tensor:
        """[B, H, L] -> [B, K, L], the mean of the query heads of each key/value head."""
        return x.unflatten(1, (self.keys.shape[1], -1)).mean(2)


@dataclass
class CacheCompressor(Method):
    """keep: the share of the entries that may go which stays. recent: so many
    newest entries come first among those."""

    _: KW_ONLY
    scope: Literal["media", "prompt"] = "media"
    recent: int = 0

    #: evict: drop after the prompt; select: attend to some at every step; prefill: attend sparsely within the prompt
    acts: ClassVar[Literal["evict", "select", "prefill"]] = "evict"
    #: scores are updated, and entries dropped, at every later step too
    at_every_step: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scope not in ("media", "prompt"):
            raise ValueError(f"scope {self.scope!r} is unknown; use media or prompt")
        if self.recent < 0:
            raise ValueError(f"recent is {self.recent}; it is a number of entries, at least 0")

    @abstractmethod
    def scores(self, look: Look) -> Tensor:
        """The worth of every slot to every key/value head, float [B, K, L]."""

    def observe(self, look: Look) -> None:
        """Told of the prompt by methods that select: nothing is dropped there."""

"""LagKV (arXiv 2504.04704): how far an entry stands out of the range of the entries that come after it.

Entries behind the sinks are cut into pieces of `lag`. Keys and values of a piece are scaled by the smallest and largest
values, channel by channel, of the next piece; their spread over the channels, softmaxed over the piece, is the score.
The places within a piece count, so that every piece loses the same share. The last whole piece and what is behind it
have no next piece and stay. A prompt that has not two pieces loses its oldest entries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.compression.kv.method import ALWAYS, CacheCompressor
from unimodal.compression.method import check_whole
from unimodal.compression.running.look import Look
from unimodal.compression.running.slots import gather_slots


@dataclass
class LagKV(CacheCompressor):
    """Keep the entries that stand out of the range of the next piece of the prompt (LagKV, arXiv 2504.04704).

    scores [B, K, L]: the rank of the spread of scaled keys and values within a piece, from 0 to 1.
    sinks: so many first entries stay before all others. lag: entries in a piece, at least 2. Raises ValueError for
    negative sinks, a shorter lag, and for what `CacheCompressor` refuses.
    """

    paper: ClassVar[str] = "LagKV, arXiv 2504.04704"

    sinks: int = 4
    lag: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("sinks", self.sinks, 0)
        check_whole("lag", self.lag, 2)

    def score(self, look: Look) -> Tensor:
        num_groups = look.keys.shape[1]
        held = look.slots.find_held().expand(-1, num_groups, -1)  # [B, K, L]
        number = held.cumsum(-1) - 1  # [B, K, L], which of its head's entries a slot is
        count = held.sum(-1, keepdim=True)  # [B, K, 1]
        pieces = (count - self.sinks).clamp(min=0) // self.lag  # [B, K, 1]
        behind = self.sinks + (pieces - 1) * self.lag  # [B, K, 1], where the last whole piece begins
        always = (number < self.sinks) | (number >= behind)
        ranks = self.rank_in_pieces(look, held)  # [B, K, n]
        worth = ranks.gather(-1, (number - self.sinks).clamp(0, ranks.shape[-1] - 1)) / self.lag
        worth = worth.masked_fill(always, 1.0)
        newest = (number - self.sinks) / (count - self.sinks).clamp(min=1)  # a prompt without two pieces
        newest = newest.masked_fill(number < self.sinks, 1.0)
        return torch.where(pieces < 2, newest, worth).masked_fill(number < self.sinks, ALWAYS)

    def rank_in_pieces(self, look: Look, held: Tensor) -> Tensor:
        """The place of each entry behind the sinks within its piece, by its score, [B, K, n], n a multiple of lag.

        The entries of every head stand at the beginning here; places of the last piece, and of what is behind it, mean
        nothing.
        """
        num = max(held.shape[-1] - self.sinks, 0)
        padding = -num % self.lag or (self.lag if num == 0 else 0)
        order = (~held).long().argsort(dim=-1, stable=True)  # [B, K, L], the held ones first
        total = torch.zeros(1, device=held.device)
        for states in (look.keys, look.values):
            packed = F.pad(gather_slots(states.float(), order)[:, :, self.sinks :], (0, 0, 0, padding))
            total = total + score_pieces(packed.unflatten(2, (-1, self.lag)))
        return total.argsort(dim=-1, stable=True).argsort(dim=-1).flatten(2)


def score_pieces(states: Tensor) -> Tensor:
    """Keys or values [B, K, P, lag, W] in pieces → how much each stands out of the next piece, [B, K, P, lag]."""
    after = states.roll(-1, 2)
    low, high = after.amin(3, keepdim=True), after.amax(3, keepdim=True)
    return ((states - low) / (high - low).clamp_min(1e-9)).std(-1).softmax(-1)

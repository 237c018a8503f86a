"""Expected attention (arXiv 2510.00636): what queries at the next positions would attend to, by their statistics.

The queries of a prompt, with their positions turned back, are taken for draws of one normal distribution a head. Turned
to the mean of the coming positions, its mean and covariance give the expected exp(logit) of every key in closed form.
That, softmaxed over the keys, times the length of the value, is the score. Statistics are those of the newest call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unimodal.compression.kv.method import ALWAYS, CacheCompressor
from unimodal.compression.method import check_whole
from unimodal.compression.running.look import Look


@dataclass
class ExpectedAttention(CacheCompressor):
    """Keep what normally distributed queries at coming positions attend to (expected attention, arXiv 2510.00636).

    scores [B, K, L]: the softmax of the expected logits, the mean over a group's heads, times the norm of the value.
    future: number of coming positions that are averaged over. sinks: entries at the first so many positions stay before
    all others, and their queries are not counted. covariance: whether the spread of the queries counts. norms: whether
    values count. epsilon: added to the attention before values count. Raises ValueError for less than one position,
    negative sinks or epsilon, and for what `CacheCompressor` refuses.
    """

    paper: ClassVar[str] = "Expected attention, arXiv 2510.00636"

    future: int = 512
    sinks: int = 4
    covariance: bool = True
    norms: bool = True
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("future", self.future, 1)
        check_whole("sinks", self.sinks, 0)
        if self.epsilon < 0:
            raise ValueError(f"epsilon is {self.epsilon}; give a number of at least 0")

    def score(self, look: Look) -> Tensor:
        slots, num = look.slots, look.query.shape[2]
        positions = slots.positions[:, 0, -num:]  # [B, Q], the same for all heads where tokens are new
        sinks = slots.find_first(self.sinks)  # [B, K or 1, L]
        counts = slots.valid[:, -num:] & ~sinks[:, 0, -num:]
        mean, cov = self.find_statistics(look, positions, counts)
        coming = positions[:, -1:] + 1 + torch.arange(self.future, device=positions.device)  # [B, future]
        mean = look.rotation.rotate_to_mean(mean[:, :, None], coming)[:, :, 0]
        keys = look.keys.float().repeat_interleave(mean.shape[1] // look.keys.shape[1], 1)  # [B, H, L, W]
        logits = (keys @ mean[..., None])[..., 0] * look.rule.scaling  # [B, H, L]
        if self.covariance:
            half = look.rotation.rotate_to_mean(cov, coming).transpose(2, 3)
            cov = look.rotation.rotate_to_mean(half, coming).transpose(2, 3)
            logits = logits + ((keys @ cov) * keys).sum(-1) * look.rule.scaling**2 / 2
        own = slots.find_held() & ~sinks
        own = own.expand(-1, look.keys.shape[1], -1).repeat_interleave(mean.shape[1] // look.keys.shape[1], 1)
        attention = logits.masked_fill(~own, -torch.inf).softmax(-1).nan_to_num(0.0)
        worth = look.average_groups(attention)
        if self.norms:
            worth = (worth + self.epsilon) * look.values.float().norm(dim=-1)
        return worth.masked_fill(sinks, ALWAYS)

    def find_statistics(self, look: Look, positions: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """The mean [B, H, W] and covariance [B, H, W, W] of the new queries with their positions turned back.

        positions int64 and counts bool, [B, Q]: which queries count.
        """
        query = look.rotation.rotate_by(look.query.float(), -positions[:, None])  # [B, H, Q, W]
        weight = counts / counts.sum(1, keepdim=True).clamp(min=1)  # [B, Q]
        mean = (query * weight[:, None, :, None]).sum(2)
        centred = (query - mean[:, :, None]) * weight.sqrt()[:, None, :, None]
        return mean, centred.transpose(2, 3) @ centred

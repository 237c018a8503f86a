"""Keyformer (arXiv 2403.09054): attention summed as in H2O, but by a Gumbel-softmax at a rising temperature.

Dropped entries leave their attention to the rest. Noise on every logit, and a temperature that rises with every token
of the answer, keep the choice from settling on the first winners. As published the temperature begins at 1 and rises by
0.01 a token (here to at most 2), and 30% of the budget is for the newest entries. The noise of a logit depends on the
seed, its head and the positions of its query and its key: a row gets the same alone and in a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unimodal.compression.kv.h2o import QUERIES, accumulate_scores
from unimodal.compression.kv.method import CacheCompressor
from unimodal.compression.method import check_whole
from unimodal.compression.running.attention_rows import compute_logits, mask_logits
from unimodal.compression.running.look import Look


@dataclass
class Keyformer(CacheCompressor):
    """Keep the entries with the most attention under noise and a rising temperature (Keyformer, arXiv 2403.09054).

    scores [B, K, L]: the Gumbel-softmax summed over all queries of the prompt and of every step behind it.
    recent_share, recent: the share of the budget, and the least number, of newest slots that stay before all others.
    first, last: temperatures at the prompt and from `steps` answer tokens on. seed: of the noise. Raises ValueError for
    a temperature that is not above 0, less than one step, and for what `CacheCompressor` refuses.
    """

    paper: ClassVar[str] = "Keyformer, arXiv 2403.09054"

    recent_share: float = 0.3
    steps: int = 100
    first: float = 1.0
    last: float = 2.0
    seed: int = 0
    at_every_step: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("steps", self.steps, 1)
        if self.first <= 0 or self.last <= 0:
            raise ValueError(f"first and last are {self.first} and {self.last}; give temperatures above 0")

    def score(self, look: Look) -> Tensor:
        num = look.query.shape[2]
        done = look.state.num_steps if look.state.num_steps is not None else torch.zeros(len(look.query))
        warmth = self.first + (self.last - self.first) * (done / self.steps).clamp(max=1.0)  # [B]
        at, valid = look.find_newest(num), look.slots.valid[:, -num:]
        total = torch.zeros((*look.query.shape[:2], look.keys.shape[2]), device=look.keys.device)
        for start in range(0, num, QUERIES):
            part = slice(start, start + QUERIES)
            logits = mask_logits(
                compute_logits(look.query[:, :, part], look.keys, look.rule), at[:, part], look.slots, look.rule
            )
            noisy = (logits + self.draw_noise(look, at[:, part])) / warmth.to(logits)[:, None, None, None]
            total += (noisy.softmax(-1).nan_to_num(0.0) * valid[:, None, part, None]).sum(2)
        return accumulate_scores(look, look.average_groups(total))

    def draw_noise(self, look: Look, at: Tensor) -> Tensor:
        """Gumbel noise [B, H, Q, L] of the logits of queries at slots `at` int64 [B, Q], by head and positions."""
        num_heads, positions = look.query.shape[1], look.slots.positions  # [B, K or 1, L]
        keys = positions.repeat_interleave(num_heads // positions.shape[1], 1)  # [B, H, L]
        own = positions.gather(2, at[:, None].expand(-1, positions.shape[1], -1))
        own = own.repeat_interleave(num_heads // positions.shape[1], 1)  # [B, H, Q]
        head = torch.arange(num_heads, device=at.device)[:, None, None]
        number = ((self.seed * num_heads + head) << 20) + own[..., None]
        uniform = (scramble((scramble(number) << 20) + keys[:, :, None]).double() + 0.5) / 2**31
        return -(-uniform.log()).log().float()


def scramble(x: Tensor) -> Tensor:
    """A hash of whole numbers int64 [...] to [0, 2³¹), whose bits look random (the mixer of MurmurHash3, 32 bits)."""
    x = (x ^ (x >> 32)) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return (x ^ (x >> 16)) >> 1

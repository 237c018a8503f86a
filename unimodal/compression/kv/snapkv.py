"""SnapKV (arXiv 2404.14469): what the last tokens of the prompt attend to is what the answer will attend to.

The attention of an observation window at the end of the prompt is averaged, smoothed along the entries so that
neighbours of a peak stay with it, and averaged over the query heads of each key/value head; every head keeps its best.
The window itself stays, as published. Where only media entries go (the scope "media"), the window ends at the newest
span: else a span shorter than the window would be judged by its own tokens, the later of which see more than the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.compression.kv.method import CacheCompressor
from unimodal.compression.method import check_odd, check_whole
from unimodal.compression.running.look import Look


@dataclass
class SnapKV(CacheCompressor):
    """Keep what the last tokens of the prompt attend to (SnapKV, arXiv 2404.14469).

    scores [B, K, L]: the mean attention of the observation window, smoothed along the entries.
    window: at most so many tokens observe; with the scope "prompt" they are kept before all others. kernel: number of
    entries that are smoothed over, odd. Raises ValueError for a window or kernel below 1, an even kernel, and what
    `CacheCompressor` refuses.
    """

    paper: ClassVar[str] = "SnapKV, arXiv 2404.14469"

    window: int = 64
    kernel: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("window", self.window, 1)
        check_odd("kernel", self.kernel)
        self.recent = max(self.recent, self.window if self.scope == "prompt" else 1)

    def score(self, look: Look) -> Tensor:
        observes = look.find_window(self.window, self.scope == "media")
        return smooth_attention(look, look.attend_newest(observes.shape[1]), observes, self.kernel)


def smooth_attention(look: Look, probs: Tensor, observes: Tensor, kernel: int, inside: Tensor | None = None) -> Tensor:
    """The attention of a window [B, H, Q, L] → its mean, smoothed over `kernel` entries, [B, K, L].

    observes: bool [B, Q], which of the newest tokens ask. inside: bool [B, n], which of the newest entries take no part
    and have score 0; by default those that ask.
    """
    weight = observes.to(probs.dtype)
    mean = look.average_groups((probs * weight[:, None, :, None]).sum(2) / weight.sum(1)[:, None, None])
    own = observes if inside is None else inside
    out = F.pad(own, (mean.shape[-1] - own.shape[1], 0))[:, None]  # bool [B, 1, L]
    return smooth_entries(mean.masked_fill(out, 0.0), look.slots.find_held(), kernel).masked_fill(out, 0.0)


def smooth_entries(worth: Tensor, held: Tensor, kernel: int) -> Tensor:
    """worth [B, K, L], 0 where nothing is held, averaged over each entry and its neighbours, `kernel` in all.

    held: bool [B, K or 1, L]. Padding between the entries of two turns is no neighbour.
    """
    order = held.long().argsort(dim=-1, stable=True).expand_as(worth)  # the entries at the end, without gaps
    packed = (worth * held).gather(-1, order)
    smooth = F.avg_pool1d(packed, kernel, stride=1, padding=kernel // 2)
    return torch.zeros_like(smooth).scatter(-1, order, smooth)

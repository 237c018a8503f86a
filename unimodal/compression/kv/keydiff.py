"""KeyDiff (arXiv 2504.15364): entries whose keys are like all others go; distinct keys stay.

The authors read a prompt in blocks and evict behind each, which bounds the memory of reading too. Here a prompt is read
in one call; every later turn is judged with what is left of the earlier ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from unimodal.compression.kv.method import CacheCompressor
from unimodal.compression.running.look import Look


@dataclass
class KeyDiff(CacheCompressor):
    """Keep the entries whose keys differ most from the mean key (KeyDiff, arXiv 2504.15364).

    scores [B, K, L]: the negative cosine with the mean of the normalised keys of the head. Raises ValueError for what
    `CacheCompressor` refuses.
    """

    paper: ClassVar[str] = "KeyDiff, arXiv 2504.15364"

    def score(self, look: Look) -> Tensor:
        keys = F.normalize(look.keys.float(), dim=-1)
        held = look.slots.find_held()[..., None]  # [B, K or 1, L, 1]
        anchor = (keys * held).sum(2, keepdim=True) / held.sum(2, keepdim=True).clamp(min=1)
        return -F.cosine_similarity(keys, anchor, dim=-1)

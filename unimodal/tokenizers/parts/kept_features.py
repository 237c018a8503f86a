"""What a frozen trunk makes of media that come again in training, kept in half precision.

Shapes: [...] of any kind; a medium is known by its values.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

import torch
from torch import Tensor


class KeptFeatures:
    """Features by the medium that they are of, up to `most_bytes`; of media that come when it is full none are kept."""

    def __init__(self, most_bytes: int):
        self.left, self.rows = most_bytes, dict[bytes, Tensor]()

    def find(self, medium: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        """make(medium), or what it was, rounded to half precision either way."""
        key = blake2b(medium.detach().contiguous().cpu().numpy().tobytes(), digest_size=16).digest()
        if key in self.rows:
            return self.rows[key].to(medium.device, torch.float32)
        row = make(medium).half()
        size = row.numel() * row.element_size()
        if size <= self.left:
            self.rows[key] = row.cpu()
            self.left -= size
        return row.float()

"""No table: every text gets random vectors for its bytes (Huang et al. 2023, "Lexinvariant Language Models",
arXiv:2305.16349).

A byte is the same vector all through a text and another one in the next text, so that nothing can be learned about a
byte by itself: what it means is worked out from where it stands. The same vectors score what comes next. They are
normal, as in the paper; the scores are divided by the root of the width, as products of such vectors grow with it.

Shapes: B texts, N positions, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from unimodal.model.build import NanoConfig
from unimodal.model.front_ends.interface import FrontEnd, UnitScores, pad_rows

NUM_BYTES = 256


class LexinvariantFrontEnd(FrontEnd):
    """In training the vectors are drawn anew each time; else by a seed, so that a text is scored the same again."""

    def __init__(self, sizes: NanoConfig, seed: int = 0) -> None:
        super().__init__(sizes, seed=seed)
        self.seed = seed
        self._draws = torch.Generator().manual_seed(seed)

    def draw_vectors(self, num_texts: int) -> Tensor:
        """Vectors [B, 256, D] of the bytes of each text."""
        if self.training:
            return torch.randn(num_texts, NUM_BYTES, self.width, generator=self._draws)
        drawn = torch.randn(1, NUM_BYTES, self.width, generator=torch.Generator().manual_seed(self.seed))
        return drawn.expand(num_texts, -1, -1)

    def score(self, texts: Sequence[bytes]) -> UnitScores:
        vectors = self.draw_vectors(len(texts))
        rows = pad_rows([list(text) for text in texts])  # [B, N]
        sizes = pad_rows([[1] * len(text) for text in texts])
        read = vectors.gather(1, rows[..., None].expand(-1, -1, self.width))  # [B, N, D]
        start = read.new_zeros(len(texts), 1, self.width)
        states = self.read(torch.cat([start, read], 1)[:, :-1])
        logits = states @ vectors.transpose(1, 2) / self.width**0.5  # [B, N, 256]
        nats = cross_entropy(logits.transpose(1, 2), rows, reduction="none")
        return UnitScores(nats * sizes, sizes)

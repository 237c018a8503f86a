"""Parallel masked decoding (the schedule of MaskGIT, arXiv:2202.04200): a baseline for methods with few passes.

All codes of a block are predicted at once, with a mask token for each unknown one. The most probable are kept, the
others masked again, on a cosine schedule: a fixed number of passes whatever the block's length. Lossy: a causal decoder
that was not trained with masks sees too little, as the baseline shows.

Shapes: N codes of the block, K candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unimodal.generation.fast.speculation import Draft, FastDecoder, Row, Verdict


@dataclass
class MaskedParallel(FastDecoder):
    """Parallel masked decoding of blocks of fixed length.

    passes: forwards for each block. mask_id: the row that stands for a masked code, by default ``<|pad|>``.
    """

    passes: int = 8
    mask_id: int | None = None

    name = "masked"
    lossless = False
    serves = "media"
    max_draft = 512

    def begin(self, row: Row) -> None:
        if self.passes < 1:
            raise ValueError(f"masked decoding takes {self.passes} passes; give at least 1")
        self.total: int | None = None
        self.known: list[int | None] = []
        self.turn = 0

    def propose(self, row: Row) -> Draft:
        if self.total is None:
            self.total = row.room if row.count is not None else 0
            self.known = [None] * self.total
        if not self.total:
            return super().propose(row)
        mask = row.pad_id if self.mask_id is None else self.mask_id
        ids = [*row.waiting, *(mask if token is None else token for token in self.known[:-1])]
        first = len(row.waiting) - 1
        return Draft(ids, list(range(first, first + self.total)), list(range(self.total)))

    def verify(self, row: Row, draft: Draft, logits: Tensor) -> Verdict:
        if not self.total:
            return super().verify(row, draft, logits)
        self.turn += 1
        scores = row.scale(logits)
        index = row.sampler.choose(scores, None if row.sampler.all_greedy else row.make_noise(draft.depths, self.turn))
        sure = scores.softmax(1).gather(1, index[:, None])[:, 0]  # [N]
        sure = torch.where(torch.tensor([token is not None for token in self.known], device=sure.device), 2.0, sure)
        masked = int(self.total * math.cos(math.pi / 2 * self.turn / self.passes)) if self.turn < self.passes else 0
        drawn = row.to_ids(index)
        keep = set(sure.argsort(descending=True, stable=True)[: max(1, self.total - masked)].tolist())
        self.known = [
            (token if token is not None else drawn[place]) if place in keep else None
            for place, token in enumerate(self.known)
        ]
        if any(token is None for token in self.known):
            return Verdict([], [], row.waiting)
        tokens = [token for token in self.known if token is not None]
        self.total = None
        return Verdict(tokens, list(range(len(row.waiting))), tokens, len(tokens))

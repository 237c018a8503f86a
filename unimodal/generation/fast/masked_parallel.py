"""Parallel masked decoding (the schedule of MaskGIT, arXiv:2202.04200): a baseline for methods with few passes.

All codes of a block are predicted at once, with a mask token for each unknown one. The surest are kept, the others
masked again, on a cosine schedule: a fixed number of passes whatever the block's length. How sure a code is: the
logarithm of its probability, plus Gumbel noise that is annealed to nothing over the passes, as in the authors' code.
Greedy decoding has no noise. Lossy: a causal decoder that was not trained with masks sees too little, as the baseline
shows. For one that was (`objectives/masked_codes.py`), ``sees_ahead`` lets every code of the block see all others.

Shapes: N codes of the block, K candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unimodal.generation.fast.protocol import Draft, FastDecoder, Row, Verdict

_CHOICE = 1 << 16  # noise of which codes are kept, apart from that of the codes


@dataclass
class MaskedParallel(FastDecoder):
    """Parallel masked decoding of blocks of fixed length.

    passes: forwards for each block, at most one for each of its codes. mask_id: the row that stands for a masked code,
    by default ``<|pad|>``. choice_temperature: of the noise, times the share of the passes that are left; 0 keeps the
    most probable codes.
    sees_ahead, own_place: as the model was trained: a code sees those behind it, and is predicted at its own place
    instead of the one before.
    """

    passes: int = 8
    mask_id: int | None = None
    choice_temperature: float = 4.5
    sees_ahead: bool = False
    own_place: bool = False

    name = "masked"
    lossless = False
    serves = "media"
    max_draft = 512

    def begin(self, row: Row) -> None:
        if self.passes < 1:
            raise ValueError(f"masked decoding takes {self.passes} passes; give at least 1")
        if self.choice_temperature < 0:
            raise ValueError(f"choice_temperature is {self.choice_temperature}; give 0 or more")
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
        ids = [*row.waiting, *(mask if token is None else token for token in self.known)]
        num = len(row.waiting)
        first = num if self.own_place else num - 1
        visible = None
        if self.sees_ahead:
            visible = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
            visible[num:] = True
        wanted = list(range(first, first + self.total))
        return Draft(ids, wanted, list(range(self.total)), None, visible)

    def verify(self, row: Row, draft: Draft, logits: Tensor) -> Verdict:
        if not self.total:
            return super().verify(row, draft, logits)
        self.turn += 1
        scores = row.scale(logits)
        index = row.sampler.choose(scores, None if row.sampler.all_greedy else row.make_noise(draft.depths, self.turn))
        sure = scores.log_softmax(1).gather(1, index[:, None])[:, 0]  # [N]
        share = self.turn / min(self.passes, self.total)
        if not row.sampler.all_greedy:
            chance = row.draw_uniform(draft.depths, _CHOICE + self.turn).to(sure.device)
            sure = sure - self.choice_temperature * (1 - share) * (-chance.log()).log()
        sure[torch.tensor([token is not None for token in self.known], device=sure.device)] = torch.inf
        unknown = sum(token is None for token in self.known)
        masked = max(1, min(unknown - 1, int(self.total * math.cos(math.pi / 2 * share)))) if share < 1 else 0
        drawn = row.to_ids(index)
        keep = set(sure.argsort(descending=True, stable=True)[: self.total - masked].tolist())
        self.known = [
            (token if token is not None else drawn[place]) if place in keep else None
            for place, token in enumerate(self.known)
        ]
        if any(token is None for token in self.known):
            return Verdict([], [], row.waiting)
        tokens = [token for token in self.known if token is not None]
        self.total = None
        return Verdict(tokens, list(range(len(row.waiting))), tokens, len(tokens))

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
    sees_ahead, own_place, asymmetric: as the model was trained: a code sees those behind it, is predicted at its own
    place instead of the one before, and sees no masked ones if it is known.
    """

    passes: int = 8
    mask_id: int | None = None
    choice_temperature: float = 4.5
    sees_ahead: bool = False
    own_place: bool = False
    asymmetric: bool = False

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
            if self.asymmetric:
                known = torch.tensor([token is not None for token in self.known])
                visible[num:, num:] = known[None] | ~known[:, None]
        wanted = list(range(first, first + self.total))
        return Draft(ids, wanted, list(range(self.total)), None, visible)

    def verify(self, row: Row, draft: Draft, logits: Tensor) -> Verdict:
        if not self.total:
            return super().verify(row, draft, logits)
        self.turn += 1
        share = self.turn / min(self.passes, self.total)
        unknown = [place for place, token in enumerate(self.known) if token is None]
        own = torch.tensor(unknown, device=logits.device)
        drawn, kept = choose_surest(row, logits[own], unknown, self.total, share, self.turn, self.choice_temperature)
        for number in kept:
            self.known[unknown[number]] = drawn[number]
        if any(token is None for token in self.known):
            return Verdict([], [], row.waiting)
        tokens = [token for token in self.known if token is not None]
        self.total = None
        return Verdict(tokens, list(range(len(row.waiting))), tokens, len(tokens))


def choose_surest(
    row: Row, logits: Tensor, unknown: list[int], total: int, share: float, turn: int, temperature: float
) -> tuple[list[int], list[int]]:
    """The tokens [N] drawn at the unknown places of a block, and which of these N are kept: the surest, ascending.

    logits: [N, K]. total: codes of the block. share: of the passes that are done, this one counted, whose number is
    `turn`. At least one more code is kept, and before the last pass at least one is not. temperature: of the noise.
    """
    scores = row.scale(logits)
    index = row.sampler.choose(scores, None if row.sampler.all_greedy else row.make_noise(unknown, turn))
    sure = scores.log_softmax(1).gather(1, index[:, None])[:, 0]  # [N]
    if not row.sampler.all_greedy:
        chance = row.draw_uniform(unknown, _CHOICE + turn).to(sure.device)
        sure = sure - temperature * (1 - share) * (-chance.log()).log()
    num = len(unknown)
    masked = max(1, min(num - 1, int(total * math.cos(math.pi / 2 * share)))) if share < 1 else 0
    return row.to_ids(index), sorted(sure.argsort(descending=True, stable=True)[: num - masked].tolist())

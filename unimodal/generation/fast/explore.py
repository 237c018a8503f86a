"""Masked decoding that also tries what it is unsure of (Explore-Then-Exploit, arXiv:2511.21103), to become sure sooner.

For models that were trained with masks (`objectives/masked_codes.py`). A code that is all but certain tells little of
the others; one that is open tells much once it is known. So each pass reads the block several times side by side, with
one of the likeliest codes of the most open place filled in for each, and goes on with the branch in which the most
codes are sure (probability above ``threshold``), of several the one that is likelier as a whole: its guess stays, and
all its sure codes with it. The first pass has one branch. Without sure codes a pass still settles its guess.

The authors' code is not public and this was held against none: it is the strategy that their abstract describes, for
one block, since the blocks of a medium are written one by one.

Shapes: F branches, L codes, P tokens read, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unimodal.generation.fast.protocol import Draft, FastDecoder, Row, Verdict
from unimodal.vocabulary import Vocabulary


@dataclass
class Explore(FastDecoder):
    """Masked decoding of blocks of fixed length.

    threshold: the probability from which a code is sure. branches: codes that are tried at a place. mask_id, own_place:
    as of `MaskedParallel`.
    """

    threshold: float = 0.9
    branches: int = 3
    mask_id: int | None = None
    own_place: bool = False

    name = "explore"
    lossless = False
    serves = "media"
    keeps_order = False
    max_draft = 512

    def check(self, vocabulary: Vocabulary, modalities: Sequence[str]) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"explore's threshold is {self.threshold}; give a probability above 0 and up to 1")
        if self.branches < 1:
            raise ValueError(f"explore tries {self.branches} codes; give at least 1")

    def begin(self, row: Row) -> None:
        self.total: int | None = None
        self.known: list[int | None] = []
        self.open: int | None = None  # the place that is tried
        self.tried: list[tuple[int, float]] = []  # its codes, and their logarithms of the probability
        self.mask = row.pad_id if self.mask_id is None else self.mask_id
        self.last, self.turn = 0, 0

    def propose(self, row: Row) -> Draft:
        if self.total is None:
            self.total = row.room if row.count is not None else 0
            self.known = [None] * self.total
        if not self.total:
            return super().propose(row)
        first = row.waiting if not self.turn else []
        self.last = first[-1] if first else self.last
        ids, offsets = list(first), list(range(len(first)))
        wanted: list[int] = []
        branches = self.tried or [(self.mask, 0.0)]
        length = self.total + 1  # with the token before, which predicts the first code
        visible = torch.zeros(len(first) + len(branches) * length, 1 + len(first) + len(branches) * length)
        visible[: len(first), 0] = 1
        visible[: len(first), 1 : 1 + len(first)] = torch.ones(len(first), len(first)).tril()
        if first:
            visible[len(first) :, 0] = 1
        for token, _ in branches:
            start = len(ids)
            own = [self.mask if code is None else code for code in self.known]
            if self.open is not None:
                own[self.open] = token
            ids += [self.last, *own]
            offsets += range(len(first) - 1, len(first) + self.total)
            wanted += range(start + self.own_place, start + self.own_place + self.total)
            visible[start:, 1 : len(first)] = 1  # all but the token before, of which each branch has its own
            visible[start : start + length, 1 + start] = 1
            visible[start + 1 : start + length, 1 + start : 1 + start + length] = 1
        self.read_first = len(first)
        return Draft(ids, wanted, list(range(self.total)) * len(branches), offsets, visible.bool())

    def verify(self, row: Row, draft: Draft, logits: Tensor) -> Verdict:
        if not self.total:
            return super().verify(row, draft, logits)
        scores = row.scale(logits).view(-1, self.total, logits.shape[1])  # [F, L, K]
        self.turn += 1
        places = list(range(self.total))
        noise = None if row.sampler.all_greedy else row.make_noise(places)
        best: tuple[tuple[int, float], dict[int, int], Tensor] | None = None
        for number, one in enumerate(scores):
            likely = one.log_softmax(1)
            index = row.sampler.choose(one, noise)
            sure = likely.gather(1, index[:, None])[:, 0].exp().tolist()
            drawn, own = row.to_ids(index), dict[int, int]()
            if self.open is not None:
                own[self.open] = self.tried[number][0]
            total = self.tried[number][1] if self.tried else 0.0
            for place in places:
                if self.known[place] is None and place not in own and sure[place] >= self.threshold:
                    own[place], total = drawn[place], total + float(likely[place, index[place]])
            if best is None or (len(own), total) > best[0]:
                best = ((len(own), total), own, one)
        assert best is not None
        _, own, chosen = best
        for place, token in own.items():
            self.known[place] = token
        kept = list(range(self.read_first))
        tokens = [token for token in self.known if token is not None]
        if len(tokens) == self.total:
            self.total = None
            return Verdict(tokens, kept, tokens, len(tokens))
        self._choose_open(row, chosen, noise)
        return Verdict([], kept, [])

    def _choose_open(self, row: Row, scores: Tensor, noise: Tensor | None) -> None:
        """Try the likeliest codes of the place of the highest entropy. scores: [L, K]. noise: of the plain loop."""
        likely = scores.log_softmax(1)
        entropy = -(likely.exp() * likely.nan_to_num(neginf=0.0)).sum(1)
        entropy[torch.tensor([token is not None for token in self.known], device=entropy.device)] = -1.0
        self.open = int(entropy.argmax())
        ranked = scores[self.open] if noise is None else scores[self.open] + noise[self.open]
        found = ranked.topk(min(self.branches, len(ranked)))
        index = found.indices[found.values > -torch.inf]
        self.tried = list(zip(row.to_ids(index), likely[self.open, index].tolist(), strict=True))

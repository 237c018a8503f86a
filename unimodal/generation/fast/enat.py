"""Masked decoding that reads each known code once (ENAT, arXiv:2411.06959), for a model trained with ``asymmetric``.

Known codes see known ones only, and masks read them (`objectives/masked_codes.py`). So a pass reads the codes that the
pass before made known, which stay in the cache, and a mask for each that is not known yet, which does not: a block of N
codes takes N readings of codes and a falling number of masks, where `masked` reads all N in every pass. Which codes are
kept, and with what noise, is the rule of `masked`.

As in the authors' network, what was read stays as it was read, though later codes would have been seen by then: their
representations are reused. They project them once more by a layer of its own, which a causal LM has not.

Shapes: P tokens read, V slots, N unknown codes, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unimodal.generation.fast.masked_parallel import choose_surest
from unimodal.generation.fast.protocol import Draft, FastDecoder, Row, Verdict
from unimodal.vocabulary import Vocabulary


@dataclass
class Enat(FastDecoder):
    """Parallel masked decoding of blocks of fixed length. Settings as of `MaskedParallel`."""

    passes: int = 8
    mask_id: int | None = None
    choice_temperature: float = 4.5

    name = "enat"
    lossless = False
    serves = "media"
    keeps_order = False
    max_draft = 512

    def check(self, vocabulary: Vocabulary, modalities: Sequence[str]) -> None:
        if self.passes < 1:
            raise ValueError(f"enat takes {self.passes} passes; give at least 1")
        if self.choice_temperature < 0:
            raise ValueError(f"choice_temperature is {self.choice_temperature}; give 0 or more")

    def begin(self, row: Row) -> None:
        self.total: int | None = None
        self.known: dict[int, int] = {}  # place → token
        self.fresh: list[int] = []  # places that are known and not read
        self.cached: list[int] = []  # places in the cache, in its order
        self.turn = 0

    def propose(self, row: Row) -> Draft:
        if self.total is None:
            self.total = row.room if row.count is not None else 0
        if not self.total:
            return super().propose(row)
        mask = row.pad_id if self.mask_id is None else self.mask_id
        first = row.waiting if not self.turn else []
        unknown = [place for place in range(self.total) if place not in self.known]
        ids = [*first, *(self.known[place] for place in self.fresh), *[mask] * len(unknown)]
        before = len(first) + len(self.fresh)
        visible = torch.ones(len(ids), len(ids), dtype=torch.bool)
        visible[: len(first)] = torch.ones(len(first), len(ids), dtype=torch.bool).tril()
        visible[len(first) : before, before:] = False
        origin = -len(first) if first else len(self.cached)
        offsets = [*range(len(first)), *(place - origin for place in [*self.fresh, *unknown])]
        self.read_first = len(first)
        return Draft(ids, list(range(before, len(ids))), unknown, offsets, visible)

    def verify(self, row: Row, draft: Draft, logits: Tensor) -> Verdict:
        if not self.total:
            return super().verify(row, draft, logits)
        self.turn += 1
        unknown = list(draft.depths)
        share = self.turn / min(self.passes, self.total)
        drawn, kept = choose_surest(row, logits, unknown, self.total, share, self.turn, self.choice_temperature)
        in_cache, read = len(self.cached), list(range(self.read_first + len(self.fresh)))
        self.cached += self.fresh
        self.fresh = [unknown[number] for number in kept]
        self.known |= {unknown[number]: drawn[number] for number in kept}
        if len(self.known) < self.total:
            return Verdict([], read, [])
        tokens = [self.known[place] for place in range(self.total)]
        self.total = None
        return Verdict(tokens, read[: self.read_first], tokens, len(tokens), in_cache)

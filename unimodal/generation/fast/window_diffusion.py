"""Masked decoding within a window that moves to the right (Window-Diffusion, arXiv:2601.20332), from cached neighbours.

For models that were trained with masks (`objectives/masked_codes.py`). A phase begins with a pass over all known codes
and the first ``window`` masks; masks further on are left out, and do not exist until they come into the window. The
following ``refresh`` - 1 passes read the first ``active`` masks alone, with the codes between them, and see the others
by the keys and values that this pass left. In each pass the surest masks among the active ones become known, as many
as make ``passes`` passes of the block. Sampled codes have the noise of their places; how sure one is, is its logarithm
of the probability.

The authors' LLaDA code reads far masks in the first pass of a phase too; here, as in their Dream code and the paper,
they are left out. The prompt is causal and read once, as all prompts are here.

Shapes: P tokens read, V slots, N active masks, K candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unimodal.generation.fast.protocol import Draft, FastDecoder, Row, Verdict
from unimodal.vocabulary import Vocabulary


@dataclass
class WindowDiffusion(FastDecoder):
    """Masked decoding of blocks of fixed length.

    passes, mask_id, own_place: as of `MaskedParallel`. window, active, refresh: see the module.
    """

    passes: int = 16
    window: int = 64
    active: int = 16
    refresh: int = 4
    mask_id: int | None = None
    own_place: bool = False

    name = "window-diffusion"
    lossless = False
    serves = "media"
    keeps_order = False
    max_draft = 512

    def check(self, vocabulary: Vocabulary, modalities: Sequence[str]) -> None:
        for name in ("passes", "active", "refresh"):
            if getattr(self, name) < 1:
                raise ValueError(f"window-diffusion's {name} is {getattr(self, name)}; give at least 1")
        if self.window < self.active:
            raise ValueError(f"window-diffusion's window is {self.window}; give at least its active {self.active}")

    def begin(self, row: Row) -> None:
        self.total: int | None = None
        self.known: list[int | None] = []
        self.cached: list[int] = []  # places in the cache, in its order
        self.turn = self.phase = 0
        self.mask = row.pad_id if self.mask_id is None else self.mask_id
        self.last = 0  # the token before the block, which predicts its first code unless codes do at their own places

    def propose(self, row: Row) -> Draft:
        if self.total is None:
            self.total = row.room if row.count is not None else 0
            self.known = [None] * self.total
        if not self.total:
            return super().propose(row)
        first = row.waiting if not self.turn else []
        self.last = first[-1] if first else self.last
        unknown = [place for place, token in enumerate(self.known) if token is None]
        self.asked = unknown[: self.active]
        if not self.phase:
            read = list(range(unknown[: self.window][-1] + 1))
        else:
            read = list(range(self.asked[0] - (not self.own_place), self.asked[-1] + 1))
        if not self.phase and not first and not self.own_place:
            read = [-1, *read]
        ids = [*first, *(self.last if place < 0 else self._read(place) for place in read)]
        held = [-1, *self.cached] if not first else []  # the slots that some of this may stand for
        seen = [place not in read for place in held] + [True] * len(ids)
        visible = torch.tensor(seen).repeat(len(ids), 1)
        if first:
            visible[: len(first)] = torch.ones(len(first), len(ids), dtype=torch.bool).tril()
        if read[0] < 0:  # what predicts the first code stays as causal as it was read
            number = len(first)
            visible[number] = torch.tensor([False] * len(held) + [place < 0 for place in read])
        origin = -len(first) if first else len(self.cached)
        offsets = [*range(len(first)), *(place - origin for place in read)]
        self.places, self.read_first = read, len(first)
        at = {place: len(first) + number for number, place in enumerate(read)}
        if first:
            at[-1] = len(first) - 1
        shift = 0 if self.own_place else 1
        return Draft(ids, [at[place - shift] for place in self.asked], list(self.asked), offsets, visible)

    def _read(self, place: int) -> int:
        token = self.known[place]
        return self.mask if token is None else token

    def verify(self, row: Row, draft: Draft, logits: Tensor) -> Verdict:
        if not self.total:
            return super().verify(row, draft, logits)
        scores = row.scale(logits)
        index = row.sampler.choose(scores, None if row.sampler.all_greedy else row.make_noise(draft.depths))
        sure = scores.log_softmax(1).gather(1, index[:, None])[:, 0]
        left = sum(token is None for token in self.known)
        num = math.ceil(left / max(1, min(self.passes, self.total) - self.turn))
        drawn = row.to_ids(index)
        for number in sure.argsort(descending=True, stable=True)[:num].tolist():
            self.known[self.asked[number]] = drawn[number]
        self.turn += 1
        kept, held = list(range(self.read_first)), len(self.cached)
        tokens = [token for token in self.known if token is not None]
        if len(tokens) == self.total:
            self.total = None
            return Verdict(tokens, kept, tokens, len(tokens), held)
        first_of_phase, self.phase = not self.phase, (self.phase + 1) % self.refresh
        if not self.phase:  # the next pass reads all anew
            self.cached = []
            return Verdict([], kept, [], 0, held)
        if first_of_phase:
            self.cached = [place for place in self.places if place >= 0]
            kept += [self.read_first + number for number, place in enumerate(self.places) if place >= 0]
        return Verdict([], kept, [])

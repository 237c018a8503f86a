"""ZipAR (arXiv:2412.04062): rows of a picture are decoded in parallel, each a window behind the one above.

In raster order the token to the left and those above say more than the far end of the row above. So row r + 1 starts
once row r has ``window`` tokens, and a pass writes one token of every open row. Where the last token of the row above
is not known yet, its newest stands in for it, and leaves the cache again. Tokens keep their raster positions and see
only what comes before them in the raster. Lossy unless the window is the whole row, when it is the plain loop.

It is for raster order only: codes that run from coarse to fine have no rows.

Shapes: N codes of the block, P tokens read, V slots of the block in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unimodal.generation.fast.speculation import Draft, FastDecoder, Row, Verdict
from unimodal.vocabulary import Vocabulary


@dataclass
class ZipAR(FastDecoder):
    """window: tokens that the row above must have. columns: block name → codes a row, for every block in raster
    order."""

    window: int = 4
    columns: Mapping[str, int] = field(default_factory=dict)

    name = "zipar"
    lossless = False
    serves = "media"
    keeps_order = False
    max_draft = 64

    def check(self, vocabulary: Vocabulary, modalities: Sequence[str]) -> None:
        if self.window < 1:
            raise ValueError(f"zipar's window is {self.window}; give at least 1")
        for name in modalities:
            if name == "text":
                continue
            segments = [s for s in vocabulary.layout(name).segments if s.count is not None]
            for segment in segments:
                columns = self.columns.get(segment.block)
                if columns is None:
                    raise ValueError(
                        f"zipar decodes rows of a raster, but the codes of block {segment.block!r} are not in raster "
                        f"order (or their columns are not given); use another decoder for {name}"
                    )
                if columns < 1 or (segment.count or 0) % columns:
                    raise ValueError(
                        f"block {segment.block!r} has {segment.count} codes, which {columns} columns do not divide"
                    )

    def begin(self, row: Row) -> None:
        whole = row.block in self.columns and row.count is not None and row.segment_written == 0
        self.total = row.count if whole and row.count is not None else 0  # 0: one token a step
        self.width = self.columns.get(row.block or "", 1)
        self.known: dict[int, int] = {}  # place in the raster → token
        self.slots: list[int] = []  # places of the block in the cache, in its order
        self.unread: list[int] = []  # places whose token is to be read next
        self.written = 0

    def propose(self, row: Row) -> Draft:
        if not self.total:
            return super().propose(row)
        places, ids, real = [], [], []  # places in the raster; waiting tokens of the span before are below 0
        if not self.known:
            places, ids = list(range(-len(row.waiting), 0)), list(row.waiting)
        places += self.unread
        ids += [self.known[place] for place in self.unread]
        real = [True] * len(ids)
        self.targets, wanted = [], []
        for line in range(self.total // self.width):
            target = self._next_of(line)
            if target is None:
                continue
            before = target - 1
            if before in places and real[places.index(before)]:
                wanted.append(places.index(before))
            else:  # the end of the line above is not known: its newest token stands in
                newest = max(place for place in self.known if place < target and place // self.width == line - 1)
                wanted.append(len(ids))
                places.append(before)
                ids.append(self.known[newest])
                real.append(False)
            self.targets.append(target)
        self.places, self.real = places, real
        base = len(self.slots) if self.known else -len(row.waiting)  # the cache's next position, as a place
        offsets = [place - base for place in places]
        return Draft(ids, wanted, [t - self.written for t in self.targets], offsets, self._visible())

    def _next_of(self, line: int) -> int | None:
        """The place that this line writes next, if it may."""
        done = sum(1 for column in range(self.width) if line * self.width + column in self.known)
        above = sum(1 for column in range(self.width) if (line - 1) * self.width + column in self.known)
        if done == self.width or (line and above < min(self.window, self.width)):
            return None
        return line * self.width + done

    def _visible(self) -> Tensor:
        """bool [P, V + P]: real tokens at earlier places, and each token itself."""
        places = torch.tensor(self.places)
        held = torch.tensor([*self.slots, *self.places])
        real = torch.tensor([True] * len(self.slots) + self.real)
        itself = torch.cat(
            [torch.zeros(len(places), len(self.slots), dtype=torch.bool), torch.eye(len(places), dtype=torch.bool)], 1
        )
        return ((held[None] < places[:, None]) & real) | itself

    def verify(self, row: Row, draft: Draft, logits: Tensor) -> Verdict:
        if not self.total:
            return super().verify(row, draft, logits)
        drawn = row.to_ids(row.draw(row.scale(logits), draft.depths))
        self.known.update(zip(self.targets, drawn, strict=True))
        kept = [index for index, real in enumerate(self.real) if real]
        self.slots += [self.places[index] for index in kept if self.places[index] >= 0]
        self.unread = list(self.targets)
        tokens = []
        while self.written in self.known:
            tokens.append(self.known[self.written])
            self.written += 1
        done = self.written == self.total
        return Verdict(tokens, kept, [self.known[place] for place in self.unread] if done else [], len(tokens))

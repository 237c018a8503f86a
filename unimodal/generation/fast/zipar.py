"""ZipAR (arXiv:2412.04062): rows of a picture are decoded in parallel, each a window behind the one above.

In raster order the token to the left and those above tell more than the far end of the row above. So row r + 1 starts
once row r has ``window`` codes, and a pass writes one code of every open row. The first code of a row is predicted from
the end of the row above. If that is a mark, as in Emu3 and Lumina-mGPT, it is known: it is read when the row below
starts, as in the authors' code, and stays in the cache. If it is a code that is not written yet, the newest code of the
row above takes its place for one pass and leaves the cache again. Tokens keep their raster positions and see only
earlier ones. Lossy, unless the window is the whole row: then it is the plain loop.

A picture of H rows of W codes takes (H - 1) * window + W passes in place of H * W.

``adaptive``: the paper's windows that grow where a row needs them. The first code of a row, drawn from q behind k
codes of the row above, is judged in the next pass by the prediction p behind k + 1 of them: it stays with probability
min(1, p(x) / q(x)), else the positive part of p - q is drawn from, and judged in its turn. The row goes on once a code
stays, or the row above is whole. The authors' code has fixed windows only, so this rule was not held against a
reference.

Only for raster order: codes that run from coarse to fine have no rows.

Shapes: P tokens read, V slots of the picture in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unimodal.generation.fast.protocol import Draft, FastDecoder, Row, Verdict
from unimodal.vocabulary import Vocabulary

_STAY, _MOVE = 1 << 16, 1 << 17  # noise of the judgement of first codes, of which every pass has its own


@dataclass
class ZipAR(FastDecoder):
    """Parallel rows.

    window: codes that the row above must have before a row starts. columns: block name → codes in a row, for blocks in
    raster order; pictures that are written in rows with marks need no entry. adaptive: whether windows grow.
    """

    window: int = 4
    adaptive: bool = False
    columns: Mapping[str, int] = field(default_factory=dict)

    name = "zipar"
    lossless = False
    serves = "media"
    keeps_order = False
    spans_lines = True
    max_draft = 64

    def check(self, vocabulary: Vocabulary, modalities: Sequence[str]) -> None:
        if self.window < 1:
            raise ValueError(f"zipar's window is {self.window}; give at least 1")
        for name in modalities:
            if name == "text" or vocabulary.get_layout(name).grid is not None:
                continue
            segments = [s for s in vocabulary.get_layout(name).segments if s.count is not None]
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
        self.mark = row.mark
        self.lines = 0  # 0 writes one token a step
        if row.count is not None and row.segment_written == 0:
            if row.mark is not None:
                self.width, self.lines = row.count, row.lines
            elif row.block is not None and row.block in self.columns:
                self.width = self.columns[row.block]
                self.lines = row.count // self.width
        #: places are numbered in raster order, marks included: place = line * pitch + column
        self.pitch = 0 if not self.lines else self.width + (self.mark is not None)
        self.known: dict[int, int] = {}  # place → token
        self.done = [0] * self.lines  # codes of each line
        self.slots: list[int] = []  # places of the picture in the cache, in its order
        self.unread: list[int] = []  # places whose token is to be read next
        self.written = 0  # places that are in the answer
        self.passes = 0
        self.pending: dict[int, tuple[int, Tensor]] = {}  # line → its first code, which is judged again, and q [K]

    def propose(self, row: Row) -> Draft:
        if not self.lines:
            return super().propose(row)
        places, ids, real = [], [], []  # waiting tokens from before the picture have places below 0
        if not self.known:
            places, ids = list(range(-len(row.waiting), 0)), list(row.waiting)
        places += self.unread
        ids += [self.known[place] for place in self.unread]
        real = [True] * len(ids)
        self.targets, wanted = [], []
        for line, done in enumerate(self.done):
            if done == self.width or (line and self.done[line - 1] < min(self.window, self.width)):
                continue
            target = line * self.pitch + done
            before = target - 1
            if before not in places:  # the end of the line above: a mark, or its newest code in place of an unknown one
                newest = self.known[(line - 1) * self.pitch + self.done[line - 1] - 1]
                ids.append(newest if self.mark is None else self.mark)
                real.append(self.mark is not None and not self.adaptive)
                places.append(before)
            wanted.append(places.index(before))
            self.targets.append(target)
        self.places, self.real = places, real
        base = len(self.slots) if self.known else -len(row.waiting)  # the cache's next position, as a place
        offsets = [place - base for place in places]
        depths = [target - self.written for target in self.targets]
        steps = [self._count_codes(target) - self._count_codes(self.written) for target in self.targets]
        return Draft(ids, wanted, depths, offsets, self._make_visible(), steps)

    def _count_codes(self, place: int) -> int:
        """Codes before a place in raster order."""
        line, column = divmod(place, self.pitch)
        return line * self.width + column

    def _make_visible(self) -> Tensor:
        """What the new tokens see, bool [P, V + P]: real tokens at earlier places, and each token itself."""
        places = torch.tensor(self.places)
        held = torch.tensor([*self.slots, *self.places])
        real = torch.tensor([True] * len(self.slots) + self.real)
        itself = torch.cat(
            [torch.zeros(len(places), len(self.slots), dtype=torch.bool), torch.eye(len(places), dtype=torch.bool)], 1
        )
        return ((held[None] < places[:, None]) & real) | itself

    def verify(self, row: Row, draft: Draft, logits: Tensor) -> Verdict:
        if not self.lines:
            return super().verify(row, draft, logits)
        scores = row.scale(logits)
        drawn = row.to_ids(row.draw(scores, draft.depths))
        if self.adaptive:
            drawn = self._judge(row, row.sampler.compute_probabilities(scores), drawn, draft.depths)
        self.known.update(zip(self.targets, drawn, strict=True))
        for target in self.targets:
            self.done[target // self.pitch] += 1
        kept = [index for index, real in enumerate(self.real) if real]
        self.slots += [self.places[index] for index in kept if self.places[index] >= 0]
        self.unread = list(self.targets)
        tokens, codes = [], 0
        while self.written < self.lines * self.pitch:
            if self.mark is not None and self.written % self.pitch == self.width:
                tokens.append(self.mark)
            elif self.written in self.known:
                tokens.append(self.known[self.written])
                codes += 1
            else:
                break
            self.written += 1
        waiting = []
        if self.written == self.lines * self.pitch:
            waiting = [self.known[place] for place in self.unread] + ([] if self.mark is None else [self.mark])
        return Verdict(tokens, kept, waiting, codes)

    def _judge(self, row: Row, p: Tensor, drawn: list[int], depths: Sequence[int]) -> list[int]:
        """The tokens of the targets that stay; the others are targets no more. p: [W, K]."""
        self.passes += 1
        stay: dict[int, int] = {}  # target → token
        for number, target in enumerate(self.targets):
            line, column = divmod(target, self.pitch)
            token, settled = drawn[number], True
            if line and not column:
                token, settled = self._settle(row, p[number], token, line, depths[number])
            if settled:
                stay[target] = token
                if line and not column and self.mark is not None:
                    self.real[self.places.index(target - 1)] = True  # the mark stays in the cache
        self.targets = list(stay)
        return list(stay.values())

    def _settle(self, row: Row, p: Tensor, token: int, line: int, depth: int) -> tuple[int, bool]:
        """The first token of a line, and whether it stays. p: [K]. token: drawn from p with the noise of its place."""
        settled = self.done[line - 1] == self.width
        if line in self.pending:
            old, q = self.pending.pop(line)
            index = row.candidates.find_index(old)
            if float(row.draw_uniform([depth], _STAY + self.passes)[0]) * float(q[index]) <= float(p[index]):
                return old, True
            left = (p - q).clamp_min(0)
            left = torch.where(left.sum() > 0, left, p)
            token = row.to_ids((left.log() + row.make_noise([depth], _MOVE + self.passes)[0]).argmax()[None])[0]
        if not settled:
            self.pending[line] = (token, p)
        return token, settled

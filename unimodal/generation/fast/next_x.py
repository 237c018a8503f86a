"""Entity by entity: the decoder of a model trained with `next_x` (xAR, arXiv:2502.20388) or `parallel_copies`.

A picture's codes are written in entities (`objectives/entities.py`), each from noise in ``steps`` passes. At level t,
from 1 down to 0, all codes of the entity are predicted at their own places, from the entities before it and from its
own noisy codes; a lost code takes its prediction with the chance (t - s) / t at the step to level s, the Euler step of
flow matching over codes. With masks a code that was taken stays; with ``wrong`` 1 all codes may change until the end,
as no mask tells the lost ones. Finished entities stay in the cache, as in the authors' code, until the span is whole:
then its codes are read as those of any picture.

``unit="whole"`` is discrete diffusion over all codes at once. K entities take K · steps passes. Lossy: the codes of a
pass do not see each other. All codes are drawn with the settings of the first.

Shapes: P tokens read, V slots, K candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unimodal.generation.fast.protocol import Draft, FastDecoder, Row, Verdict
from unimodal.objectives.entities import Unit, find_span_entities
from unimodal.vocabulary import Vocabulary

_TAKE, _BEGIN = 1 << 16, 1 << 17  # noise of which codes take their prediction, and of what they begin as


@dataclass
class NextX(FastDecoder):
    """Decoding of blocks of fixed length by entities; any other is written token by token.

    unit, size, columns, lengths, wrong, mask_id: as the model was trained. steps: passes for an entity.
    """

    unit: Unit = "cell"
    size: int = 2
    columns: Mapping[str, int] = field(default_factory=dict)
    lengths: Mapping[str, Sequence[int]] = field(default_factory=dict)
    wrong: float = 0.1
    steps: int = 4
    mask_id: int | None = None

    name = "next-x"
    lossless = False
    serves = "media"
    keeps_order = False
    spans_lines = True
    max_draft = 1024

    def check(self, vocabulary: Vocabulary, modalities: Sequence[str]) -> None:
        if self.steps < 1:
            raise ValueError(f"next-x takes {self.steps} passes for an entity; give at least 1")
        for name in modalities:
            layout = None if name == "text" else vocabulary.get_layout(name)
            if layout is None or layout.grid is not None:
                continue
            problems = []
            for segment in layout.segments:
                if segment.count is None or len(vocabulary.group_blocks(segment.block)) > 1:
                    continue
                try:
                    self._divide(segment.block, segment.count)
                    break
                except ValueError as error:
                    problems.append(f"next-x: {error}")
            else:
                if problems:
                    raise ValueError(problems[0])

    def _divide(self, block: str, count: int) -> Tensor:
        lengths = {name: tuple(own) for name, own in self.lengths.items()}
        return find_span_entities(block, count, self.unit, self.size, dict(self.columns), lengths)

    def begin(self, row: Row) -> None:
        self.entities: list[list[int]] = []  # places of each, in the order of writing
        whole = row.block is not None and row.count is not None and row.segment_written == 0 and row.mark is None
        if whole and len(row.candidates.ids) == len(row.ordinary):  # one codebook, and no mark that could end it
            assert row.block is not None and row.count is not None
            try:
                entity = self._divide(row.block, row.count)
            except ValueError:  # such a block is learnt token by token
                return
            self.entities = [(entity == number).nonzero()[:, 0].tolist() for number in range(int(entity.max()) + 1)]
        self.known: dict[int, int] = {}  # place → token
        self.cached: list[int] = []  # places in the cache, in its order
        self.number, self.step = 0, 0
        self.mask = row.pad_id if self.mask_id is None else self.mask_id
        self.noisy: list[int] = []  # what the codes of the entity are now

    def propose(self, row: Row) -> Draft:
        if not self.entities:
            return super().propose(row)
        places = self.entities[self.number]
        first = row.waiting if self.number == self.step == 0 else []
        done = self.entities[self.number - 1] if self.number and not self.step else []
        if not self.step:
            self.noisy = self._begin_entity(row, places)
        clean = [self.known[place] for place in done]
        ids = [*first, *clean, *self.noisy]
        before = len(first) + len(clean)
        visible = torch.ones(len(ids), len(ids), dtype=torch.bool)
        visible[: len(first)] = torch.ones(len(first), len(ids), dtype=torch.bool).tril()
        visible[len(first) : before, before:] = False  # what is finished sees nothing of what comes
        origin = -len(first) if first else len(self.cached)  # the cache's next position, as a place of the span
        offsets = [*range(len(first)), *(place - origin for place in [*done, *places])]
        self.read_first, self.done = len(first), done
        return Draft(ids, list(range(before, len(ids))), list(places), offsets, visible)

    def _begin_entity(self, row: Row, places: Sequence[int]) -> list[int]:
        """The noise that an entity's codes begin as."""
        wrong = row.draw_uniform(places, _BEGIN).tolist()
        drawn = row.draw_uniform(places, _BEGIN + 1).tolist()
        size = len(row.ordinary)
        return [
            row.ordinary[min(int(chance * size), size - 1)] if mistaken < self.wrong else self.mask
            for mistaken, chance in zip(wrong, drawn, strict=True)
        ]

    def verify(self, row: Row, draft: Draft, logits: Tensor) -> Verdict:
        if not self.entities:
            return super().verify(row, draft, logits)
        places = self.entities[self.number]
        predicted = row.to_ids(row.draw(row.scale(logits), draft.depths, self.step))
        chances = row.draw_uniform(draft.depths, _TAKE + self.step).tolist()
        taken = 1 / (self.steps - self.step)  # (t - s) / t of levels that fall evenly
        for number, place in enumerate(places):
            if chances[number] <= taken and (place not in self.known or self.wrong >= 1):
                self.known[place] = self.noisy[number] = predicted[number]
        self.step += 1
        if self.step == self.steps:
            self.number, self.step = self.number + 1, 0
        kept = list(range(self.read_first))
        if self.number < len(self.entities):
            self.cached += self.done
            return Verdict([], kept + list(range(self.read_first, self.read_first + len(self.done))), [])
        tokens = [self.known[place] for place in range(len(self.known))]
        self.entities = []
        return Verdict(tokens, kept, tokens, len(tokens), len(self.cached))

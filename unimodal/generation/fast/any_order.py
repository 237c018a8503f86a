"""Any-order decoding, several codes at once and without loss: any-subset speculative decoding (arXiv:2504.20456).

For a model trained with `any_order` (`objectives/any_order.py`). Codes have an order. A drafting pass asks for the next
``window`` of them by masks at their places, each from the codes that are known: so they are drawn apart from each
other. A checking pass reads the drafted codes and asks again, each place from the known codes and the drafts before it
in the order: the density of the order itself. The first draft has equal chances in both and stays; each further one
stays with probability min(1, p / q), the first that does not is drawn from the positive part of p - q, and what is
behind it is drafted anew. So the answer follows the model's own distribution in that order, in at most as many passes
as codes; ``window=1`` is that order code by code, whose draws need no check.

In ascending order known codes come as the plain loop writes them, but each is predicted by a mask at its own place: as
the model was trained, and not what the plain loop would draw. All codes are drawn with the settings of the first.

Shapes: P tokens read, V slots, W places, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from unimodal.generation.fast.protocol import Draft, FastDecoder, Row, Verdict
from unimodal.vocabulary import Vocabulary

_STAY, _ORDER = 1 << 16, 1 << 17  # noise of the judgement, and of the order
_AGAIN = 1 << 18


@dataclass
class AnyOrder(FastDecoder):
    """Any-subset speculative decoding of blocks of fixed length; any other is written token by token.

    order, mask_id: as the model was trained. window: places that are drafted at a time.
    """

    order: Literal["ascending", "random"] = "ascending"
    window: int = 8
    mask_id: int | None = None

    name = "any-order"
    lossless = False  # beside the plain loop; it follows the model's distribution in its order
    serves = "media"
    keeps_order = False
    spans_lines = True

    @property
    def max_draft(self) -> int:
        return 2 * self.window + 4

    def check(self, vocabulary: Vocabulary, modalities: Sequence[str]) -> None:
        if self.window < 1:
            raise ValueError(f"any-order's window is {self.window}; give at least 1")
        if self.order not in ("ascending", "random"):
            raise ValueError(f"order {self.order!r} is unknown; use ascending or random")

    def begin(self, row: Row) -> None:
        whole = row.count is not None and row.segment_written == 0 and row.mark is None
        count = row.count if whole and len(row.candidates.ids) == len(row.ordinary) else 0
        assert count is not None
        self.places: list[int] = list(range(count))  # in the order of writing
        if self.order == "random" and count:
            chances = row.draw_uniform(self.places, _ORDER).tolist()
            self.places.sort(key=lambda place: chances[place])
        self.known: list[int] = []  # tokens of the first places in that order
        self.num_cached = 0  # how many of them are in the cache
        self.drafts: list[int] = []
        self.guessed: Tensor | None = None  # q [W, K] of the drafts
        self.mask = row.pad_id if self.mask_id is None else self.mask_id
        self.turn = 0

    def propose(self, row: Row) -> Draft:
        if not self.places:
            return super().propose(row)
        first = row.waiting if self.num_cached == 0 and not self.known else []
        num_known, num_asked = len(self.known), min(self.window, len(self.places) - len(self.known))
        fresh = [*self.known[self.num_cached :], *self.drafts]  # what is read as codes
        asked = self.places[num_known + bool(self.drafts) : num_known + num_asked]  # the first draft needs no check
        read = self.places[self.num_cached : self.num_cached + len(fresh)]
        ids = [*first, *fresh, *[self.mask] * len(asked)]
        before = len(first) + len(fresh)
        visible = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
        visible[before:, before:] = torch.eye(len(asked), dtype=torch.bool)
        if self.drafts:  # the place of draft k + 1 sees the drafts before it
            drafted = before - len(self.drafts)
            for number in range(len(asked)):
                visible[before + number, drafted + number + 1 : before] = False
        origin = -len(first) if first else self.num_cached
        offsets = [*range(len(first)), *(place - origin for place in [*read, *asked])]
        self.read_first, self.num_fresh = len(first), len(fresh)
        return Draft(ids, list(range(before, len(ids))), list(asked), offsets, visible)

    def verify(self, row: Row, draft: Draft, logits: Tensor) -> Verdict:
        if not self.places:
            return super().verify(row, draft, logits)
        scores = row.scale(logits)
        self.turn += 1
        kept = list(range(self.read_first + self.num_fresh))
        if not self.drafts:
            drawn = row.to_ids(row.draw(scores, draft.depths))
            self.num_cached += self.num_fresh
            if len(drawn) == 1:  # nothing to check
                self.known.append(drawn[0])
            else:
                self.drafts, self.guessed = drawn, row.sampler.compute_probabilities(scores)
            return self._finish(row, kept)
        assert self.guessed is not None
        stays = self._judge(row, row.sampler.compute_probabilities(scores), draft.depths)
        unread = self.num_fresh - len(self.drafts)  # known codes that were read in this pass
        accepted = sum(token == guess for token, guess in zip(stays, self.drafts, strict=False))
        self.num_cached += unread + accepted
        kept = kept[: self.read_first + unread + accepted]
        self.known += stays
        self.drafts, self.guessed = [], None
        return self._finish(row, kept, accepted)

    def _judge(self, row: Row, p: Tensor, depths: Sequence[int]) -> list[int]:
        """The tokens that stay: drafts, and behind the first that does not its replacement. p: [W - 1, K]."""
        assert self.guessed is not None
        stays = self.drafts[:1]
        for number, (guess, depth) in enumerate(zip(self.drafts[1:], depths, strict=True)):
            index, q = row.candidates.find_index(guess), self.guessed[number + 1]
            if float(row.draw_uniform([depth], _STAY + self.turn)[0]) * float(q[index]) < float(p[number, index]):
                stays.append(guess)
                continue
            left = (p[number] - q).clamp_min(0)
            left = torch.where(left.sum() > 0, left, p[number])
            noise = row.make_noise([depth], _AGAIN + self.turn)[0]
            stays += row.to_ids((left.log() + noise).argmax()[None])
            break
        return stays

    def _finish(self, row: Row, kept: list[int], accepted: int = 0) -> Verdict:
        """The verdict of a pass: the whole span once all of it is known."""
        if len(self.known) < len(self.places):
            return Verdict([], kept, [], accepted)
        by_place = dict(zip(self.places, self.known, strict=True))
        tokens = [by_place[place] for place in range(len(by_place))]
        in_cache = self.num_cached - sum(number >= self.read_first for number in kept)
        self.places = []
        return Verdict(tokens, list(range(min(self.read_first, len(kept)))), tokens, len(tokens), in_cache)

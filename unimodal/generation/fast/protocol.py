"""What a fast decoder is: an object that proposes tokens for a row and says what becomes of them.

The loop that runs it is in `speculation.py`.

Shapes: P tokens read, V latest slots of the cache, W tokens whose logits are wanted, K candidate rows, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from unimodal.generation.head import Candidates
from unimodal.generation.sampling import Sampler, make_gumbel_noise, make_noise_keys
from unimodal.vocabulary import Vocabulary

LATEST = 16  # a row shows so many of its newest tokens


@dataclass
class Draft:
    """What one row reads next, and where its logits are wanted.

    ids: the P tokens to read. wanted: indices into them. depths: for each of `wanted`, the place of the token that it
    predicts, counted from the end of the answer.
    offsets, visible: only if the tokens do not follow one another: their positions counted from the next one, [P], and
    what each sees of the last V slots of the cache, the P new ones last, bool [P, V]. steps: only if a written token
    may be no code (a mark behind a row of a picture): like `depths`, but counted in codes.
    """

    ids: list[int]
    wanted: list[int]
    depths: list[int]
    offsets: list[int] | None = None
    visible: Tensor | None = None
    steps: list[int] | None = None


@dataclass
class Verdict:
    """What becomes of a draft.

    tokens: to write, in order. kept: which of the tokens read stay in the cache, ascending. waiting: tokens that are
    written but not yet read. forgotten: how many of the latest slots before the tokens read leave the cache, too.
    """

    tokens: list[int]
    kept: list[int]
    waiting: list[int]
    accepted: int = 0  # how many of the written tokens were guesses
    forgotten: int = 0


class Scorer(Protocol):
    """Logits of a row's candidates from states that a method made itself."""

    def __call__(self, own: Tensor, other: Tensor | None, steps: Sequence[int], head: nn.Module | None) -> Tensor:
        """States [W, D] of the row, and of its unconditional stream, → guided logits [W, K].

        steps: code steps ahead of each. head: an output matrix in place of the model's own.
        """


@dataclass
class Row:
    """What a fast decoder sees of its row."""

    index: int
    seed: int
    modality: str
    block: str | None  # the name of the block that its codes belong to; None for text
    count: int | None  # the length of that segment, None where it is free
    written: int  # tokens of the answer
    segment_written: int  # codes of the segment
    room: int  # tokens that can be written before other rows are allowed
    candidates: Candidates
    sampler: Sampler
    pad_id: int
    ordinary: range  # rows after which the same rows are allowed: text rows, or those of the block
    waiting: list[int] = field(default_factory=list)
    latest: list[int] = field(default_factory=list)  # the newest of prompt and answer, at most LATEST
    lines: int = 1  # rows of codes from here on, for a picture that is written in rows
    mark: int | None = None  # the mark behind each of those rows
    score: Scorer | None = field(default=None, repr=False)

    def make_noise(self, depths: Sequence[int], salt: int = 0) -> Tensor:
        """Gumbel noise [W, K] of the places at these depths; with salt 0 the plain loop's own."""
        keys = self._make_keys(depths, salt)
        return make_gumbel_noise(keys.to(self.candidates.ids.device), self.candidates.ids)

    def draw_uniform(self, depths: Sequence[int], salt: int) -> Tensor:
        """Uniform numbers [W] in (0, 1), independent of the noise of other salts."""
        return ((self._make_keys(depths, salt)[:, 0].double() + 0.5) * 2.0**-32).float()

    def scale(self, logits: Tensor) -> Tensor:
        """Logits [W, K] → logits after temperature and filters."""
        return self.sampler.scale(logits)

    def draw(self, scores: Tensor, depths: Sequence[int], salt: int = 0) -> Tensor:
        """Draw candidate indices [W] from scaled logits [W, K] with the noise of their places."""
        return self.sampler.choose(scores, None if self.sampler.all_greedy else self.make_noise(depths, salt))

    def rank(self, scores: Tensor, depth: int, num: int) -> list[int]:
        """The ids of the ``num`` candidates that scaled logits [1, K] make likeliest to be drawn at this place."""
        noisy = scores if self.sampler.all_greedy else scores + self.make_noise([depth])
        best = noisy[0].topk(min(num, noisy.shape[1]))
        return self.to_ids(best.indices[best.values > -torch.inf])

    def to_ids(self, index: Tensor) -> list[int]:
        """Candidate indices -> rows of the vocabulary."""
        return self.candidates.ids[index].tolist()

    def _make_keys(self, depths: Sequence[int], salt: int) -> Tensor:
        numbers = [self.written + depth + (salt << 32) for depth in depths]
        return make_noise_keys([self.seed] * len(numbers), numbers)


class FastDecoder:
    """The protocol; a subclass is one method. Its fields are the settings; `begin` sets up its state for a row.

    lossless: whether answers follow the plain loop's distribution. serves: "media", "text" or "all". keeps_order:
    whether the cache holds tokens in the order of the answer. spans_lines: whether a stretch holds all rows of a
    picture; the method then writes the marks behind them and draws all codes with the settings of the first.
    reads_states: whether `see` is to be called.
    """

    name = "one by one"
    lossless = True
    serves = "all"
    keeps_order = True
    spans_lines = False
    reads_states = False

    @property
    def max_draft(self) -> int:
        """The most tokens that a proposal usually has. Grammars are asked so many steps ahead."""
        return 1

    def start_request(self) -> FastDecoder:
        """The decoder of one request: it has a memory of its own if what it remembers could change the answer."""
        return copy.copy(self)

    def check(self, vocabulary: Vocabulary, modalities: Sequence[str]) -> None:
        """Raises ValueError, in one line, for modalities that this method cannot decode."""

    def learn(self, ids: Sequence[int]) -> None:
        """Remember a sequence (vocabulary rows) that may be written again; for methods with a memory."""

    def see(self, own: Tensor, other: Tensor | None) -> None:
        """The decoder's states [n, D] at the newest tokens that were read and kept: the prompt's last one first, then
        those of every pass, whether this method served it or not. other: of the unconditional stream.
        """

    def begin(self, row: Row) -> None:
        """Called when a row enters a stretch."""

    def propose(self, row: Row) -> Draft:
        """The next tokens for the model to read; by default the waiting ones."""
        return Draft(row.waiting, [len(row.waiting) - 1], [0])

    def verify(self, row: Row, draft: Draft, logits: Tensor) -> Verdict:
        """What becomes of the draft, by the logits [W, K] at its wanted tokens."""
        tokens = row.to_ids(row.draw(row.scale(logits), draft.depths))
        return Verdict(tokens, list(range(len(draft.ids))), tokens)

    def commit(self, row: Row, verdict: Verdict) -> None:
        """Called when the tokens are written; ``row`` counts them already."""

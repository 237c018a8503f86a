"""Retrieval-based speculative decoding (REST, arXiv:2311.08252): guesses from sequences written before.

Each place draws with the noise of the plain loop, and guesses are kept as long as they are the tokens drawn. So the
answer equals the plain loop's, token by token, greedy or sampled, whatever the memory holds. Where the memory knows
nothing, a pass is a plain step: a wrong or empty memory costs little.

It helps models that repeat themselves: a small one that recalls its training pictures, the same request with another
seed, beams that share a beginning. All rows and calls share the memory. It learns from every answer, and from any codes
given to `learn` (`tools/make_drafts.py` writes those of files beside a model).

Shapes: n guesses, W places of the pass, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from unimodal.generation.fast.draft_memory import DraftMemory
from unimodal.generation.fast.jacobi import chain_draft, count_agreed
from unimodal.generation.fast.speculation import Draft, FastDecoder, Row, Verdict


@dataclass
class Retrieval(FastDecoder):
    """Decoding with a memory. window: places of a pass."""

    window: int = 16
    serves: str = "media"
    memory: DraftMemory = field(default_factory=DraftMemory, repr=False)

    name = "retrieval"
    lossless = True

    @property
    def max_draft(self) -> int:
        return self.window + 4

    def learn(self, ids: Sequence[int]) -> None:
        self.memory.learn(ids)

    def propose(self, row: Row) -> Draft:
        return chain_draft(row, self.memory.recall(row.latest, row.ordinary, min(self.window, row.room) - 1))

    def verify(self, row: Row, draft: Draft, logits: Tensor) -> Verdict:
        right = row.to_ids(row.draw(row.scale(logits), draft.depths))  # [1 + n], each behind the guesses before it
        num = count_agreed(draft.ids[len(row.waiting) :], right)
        tokens = right[: num + 1]
        return Verdict(tokens, list(range(len(row.waiting) + num)), tokens[-1:], num)

    def commit(self, row: Row, verdict: Verdict) -> None:
        self.memory.learn([*row.latest[-self.memory.context :], *verdict.tokens])

"""Retrieval-based speculative decoding (REST, arXiv:2311.08252): guesses from sequences written before.

How those went on behind their longest match is a trie (`suffix_memory.py`), which is read in one pass as a tree. It is
followed along the tokens that the plain loop draws. So the answer equals the plain loop's, token by token, greedy or
sampled, whatever the memory holds. Where the memory knows
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

from unimodal.generation.fast.jacobi import check_window
from unimodal.generation.fast.protocol import Draft, FastDecoder, Row, Verdict
from unimodal.generation.fast.suffix_memory import SuffixMemory
from unimodal.generation.fast.trees import follow_tree, make_tree_draft


@dataclass
class Retrieval(FastDecoder):
    """Decoding with a memory. window: places of a pass, nodes of the tree but for one; the authors read 64."""

    window: int = 16
    serves: str = "media"
    memory: SuffixMemory = field(default_factory=SuffixMemory, repr=False)

    name = "retrieval"
    lossless = True

    def __post_init__(self) -> None:
        check_window(self.name, self.window)

    @property
    def max_draft(self) -> int:
        return self.window + 4

    def learn(self, ids: Sequence[int]) -> None:
        self.memory.begin(ids)

    def begin(self, row: Row) -> None:
        self.sequence: int | None = None

    def propose(self, row: Row) -> Draft:
        self.tree = self.memory.recall(row.latest, row.ordinary, self.window - 1, row.room - 1)
        return make_tree_draft(row, self.tree)

    def verify(self, row: Row, draft: Draft, logits: Tensor) -> Verdict:
        right = row.to_ids(row.draw(row.scale(logits), draft.depths))  # [W], each behind its ancestors
        tokens, path = follow_tree(row, self.tree, right)
        return Verdict(tokens, [*range(len(row.waiting)), *path], tokens[-1:], len(path))

    def commit(self, row: Row, verdict: Verdict) -> None:
        if self.sequence is None:
            self.sequence = self.memory.begin(row.latest)
        self.memory.extend(self.sequence, verdict.tokens)

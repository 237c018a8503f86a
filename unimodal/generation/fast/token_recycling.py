"""Token Recycling (arXiv:2408.08696): a tree of guesses from the model's own recent predictions.

For every token the eight likeliest successors at its last occurrence are remembered. They fill a tree of fixed shape
behind the waiting token. The tree is read in one pass, with a mask by which a node sees only its ancestors, and
followed along the tokens that the plain loop draws. So the answer equals the plain loop's. The table of successors
starts empty, is shared by all rows and grows with each answer; `learn` adds those of a prompt.

Shapes: T nodes of the tree, W = 1 + T places, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from unimodal.generation.fast.protocol import Draft, FastDecoder, Row, Verdict
from unimodal.generation.fast.trees import build_tree, follow_tree, make_tree_draft


@dataclass
class TokenRecycling(FastDecoder):
    """Decoding by a tree of guesses.

    nodes: of the tree. children: successors remembered for a token. depth: the most guesses that a pass can accept.
    """

    nodes: int = 80
    children: int = 8
    depth: int = 6
    successors: dict[int, list[int]] = field(default_factory=dict, repr=False)

    name = "token-recycling"
    lossless = True
    serves = "text"

    @property
    def max_draft(self) -> int:
        return self.nodes + 4

    def learn(self, ids: Sequence[int]) -> None:
        """Put each token's successor in a text in front of those remembered."""
        for token, following in zip(ids, ids[1:], strict=False):
            known = self.successors.setdefault(token, [])
            self.successors[token] = [following, *(other for other in known if other != following)][: self.children]

    def propose(self, row: Row) -> Draft:
        placed: dict[int, int] = {}  # node of the shape → node of this tree
        self.tree: list[tuple[int, int]] = []
        for node, (parent, rank, depth) in enumerate(build_tree(self.nodes, self.children, self.depth)):
            if depth >= row.room or (parent >= 0 and parent not in placed):
                continue
            above = row.waiting[-1] if parent < 0 else self.tree[placed[parent]][1]
            known = self.successors.get(above, [])
            if rank >= len(known) or known[rank] not in row.ordinary:
                continue
            placed[node] = len(self.tree)
            self.tree.append((-1 if parent < 0 else placed[parent], known[rank]))
        return make_tree_draft(row, self.tree)

    def verify(self, row: Row, draft: Draft, logits: Tensor) -> Verdict:
        num = len(row.waiting)
        scores = row.scale(logits)  # [1 + T, K]
        tokens, path = follow_tree(row, self.tree, row.to_ids(row.draw(scores, draft.depths)))
        best = row.candidates.ids[scores.topk(min(self.children, scores.shape[1]), dim=1).indices].tolist()
        for index, likely in zip(draft.wanted, best, strict=True):
            self.successors[draft.ids[index]] = likely
        return Verdict(tokens, [*range(num), *path], tokens[-1:], len(path))

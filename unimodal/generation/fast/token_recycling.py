"""Token Recycling (arXiv:2408.08696): a tree of guesses from the model's own recent predictions.

For every token the eight likeliest successors at its last occurrence are remembered. They fill a tree of fixed shape
behind the waiting token. The tree is read in one pass, with a mask by which a node sees only its ancestors, and
followed along the tokens that the plain loop draws. So the answer equals the plain loop's. The table of successors
starts empty, is shared by all rows and grows with each answer; `learn` adds those of a prompt.

Shapes: T nodes of the tree, W = 1 + T places, K candidates.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from unimodal.generation.fast.speculation import Draft, FastDecoder, Row, Verdict


@cache
def build_tree(nodes: int, children: int, depth: int) -> tuple[tuple[int, int, int], ...]:
    """The shape of the tree: (parent, rank, depth) of each node, parents first; parent -1 is the root.

    A successor of rank r is assumed right with probability 0.5 / (1 + r)²; the nodes with the likeliest paths are
    chosen. children: the most successors of a node. depth: that of the deepest node.
    """
    found: list[tuple[int, int, int]] = []
    waiting = [(-0.5 / (1 + rank) ** 2, -1, rank, 1) for rank in range(children)]
    heapq.heapify(waiting)
    while waiting and len(found) < nodes:
        likely, parent, rank, level = heapq.heappop(waiting)
        found.append((parent, rank, level))
        if level < depth:
            for below in range(children):
                heapq.heappush(waiting, (likely * 0.5 / (1 + below) ** 2, len(found) - 1, below, level + 1))
    return tuple(found)


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
        num, root = len(row.waiting), row.waiting[-1]
        shape = build_tree(self.nodes, self.children, self.depth)
        placed: dict[int, int] = {}  # node of the shape → index among the tokens read
        ids, self.parents, depths = list(row.waiting), [], [0]
        for node, (parent, rank, depth) in enumerate(shape):
            if depth >= row.room or (parent >= 0 and parent not in placed):
                continue
            above = root if parent < 0 else ids[placed[parent]]
            known = self.successors.get(above, [])
            if rank >= len(known) or known[rank] not in row.ordinary:
                continue
            placed[node] = len(ids)
            self.parents.append(num - 1 if parent < 0 else placed[parent])
            ids.append(known[rank])
            depths.append(depth)
        if len(ids) == num:
            return Draft(ids, [num - 1], [0])
        visible = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
        for index, parent in enumerate(self.parents, start=num):
            visible[index] = visible[parent]  # its ancestors, and itself
            visible[index, index] = True
        offsets = [*range(num), *(num - 1 + depth for depth in depths[1:])]
        return Draft(ids, list(range(num - 1, len(ids))), depths, offsets, visible)

    def verify(self, row: Row, draft: Draft, logits: Tensor) -> Verdict:
        num = len(row.waiting)
        scores = row.scale(logits)  # [1 + T, K]
        right = row.to_ids(row.draw(scores, draft.depths))  # the token that the plain loop draws behind each node
        at, path, tokens = num - 1, [], [right[0]]
        while True:
            below = [
                index
                for index, parent in enumerate(self.parents if len(draft.ids) > num else [], start=num)
                if parent == at and draft.ids[index] == tokens[-1]
            ]
            if not below:
                break
            at = below[0]
            path.append(at)
            tokens.append(right[at - num + 1])
        best = row.candidates.ids[scores.topk(min(self.children, scores.shape[1]), dim=1).indices].tolist()
        for index, likely in zip(draft.wanted, best, strict=True):
            self.successors[draft.ids[index]] = likely
        return Verdict(tokens, [*range(num), *path], tokens[-1:], len(path))

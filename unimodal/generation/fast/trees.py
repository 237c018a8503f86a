"""Trees of guesses: read in one pass with a mask by which a node sees only its ancestors (tree attention, SpecInfer,
arXiv 2305.09781), and followed along the tokens that the plain loop draws.

Shapes: T nodes, W = 1 + T places, P tokens read.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from functools import cache

import torch

from unimodal.generation.fast.protocol import Draft, Row

#: (parent, rank, depth) of each node, parents first; parent -1 is the root, rank the place among its siblings
Shape = tuple[tuple[int, int, int], ...]


@cache
def build_tree(nodes: int, children: int, depth: int) -> Shape:
    """A tree in which a child of rank r is assumed right with probability 0.5 / (1 + r)²: the ``nodes`` nodes with the
    likeliest paths.

    children: the most successors of a node. depth: that of the deepest node.
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


@cache
def build_chain(children: int, depth: int) -> Shape:
    """A chain of first children, each with its siblings, which have no children."""
    found: list[tuple[int, int, int]] = []
    parent = -1
    for level in range(1, depth + 1):
        first = len(found)
        found += [(parent, rank, level) for rank in range(children)]
        parent = first
    return tuple(found)


def make_tree_draft(row: Row, nodes: Sequence[tuple[int, int]]) -> Draft:
    """The draft of the waiting tokens and a tree behind the last of them. nodes: (parent, token), parents first.

    Wants logits at the last waiting token and at each node.
    """
    num = len(row.waiting)
    ids = [*row.waiting, *(token for _, token in nodes)]
    depths = [0]
    for parent, _ in nodes:
        depths.append(1 + (0 if parent < 0 else depths[1 + parent]))
    wanted = list(range(num - 1, len(ids)))
    if all(parent == number - 1 for number, (parent, _) in enumerate(nodes)):
        return Draft(ids, wanted, depths)  # a chain needs no mask
    visible = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    for number, (parent, _) in enumerate(nodes):
        index = num + number
        visible[index] = visible[num + parent]  # its ancestors, and itself; the root is the last waiting token
        visible[index, index] = True
    offsets = [*range(num), *(num - 1 + depth for depth in depths[1:])]
    return Draft(ids, wanted, depths, offsets, visible)


def follow_tree(row: Row, nodes: Sequence[tuple[int, int]], right: Sequence[int]) -> tuple[list[int], list[int]]:
    """The tokens that the plain loop writes along the tree, and which of the tokens read they are; the last is not.

    right: [W], the token that it draws behind the last waiting token and behind each node.
    """
    children = {(parent, token): number for number, (parent, token) in reversed(list(enumerate(nodes)))}
    at, tokens, path = -1, [right[0]], list[int]()
    while (at, tokens[-1]) in children:
        at = children[at, tokens[-1]]
        path.append(len(row.waiting) + at)
        tokens.append(right[1 + at])
    return tokens, path

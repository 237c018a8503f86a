"""Guesses by draft heads beside the model: Medusa (arXiv:2401.10774), Future Token Prediction (2410.18160).

The heads (`model/draft_heads.py`, trained by `recipes/train_draft.py`) read the states that the model had at the newest
tokens, and guess the tokens behind the one that waits to be read. The guesses are a tree: parallel heads span one whose
nodes have ``children`` candidates each; the small decoder of `future` guesses a chain, each place with ``children`` - 1
further candidates. A place ranks its candidates with the noise by which the plain loop draws there, so the guess is
right wherever the two predictions are alike enough, under sampling too.

The tree is followed along the tokens that the plain loop draws: the answer equals the plain loop's. With
``acceptance="typical"``, the authors' rule, a guess is kept whose probability exceeds min(epsilon, delta · exp(-H)), H
the entropy of the prediction: lossy, and of no use to greedy decoding.

Shapes: R streams (of the row, and its unconditional twin), M states, T nodes, K candidates, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from unimodal.generation.fast.protocol import Draft, FastDecoder, Row, Verdict
from unimodal.generation.fast.trees import Shape, build_chain, build_tree, follow_tree, make_tree_draft
from unimodal.model.draft_heads import DraftHeads
from unimodal.vocabulary import Vocabulary


@dataclass
class DraftHeadDecoder(FastDecoder):
    """Decoding with draft heads. embed: the model's table, which they read.

    nodes: the most of a tree of parallel heads. children: candidates of a place. depth: places that are guessed; None
    for all that the heads predict. epsilon, delta: of typical acceptance.
    """

    heads: DraftHeads | None = field(default=None, repr=False)
    embed: nn.Module | None = field(default=None, repr=False)
    nodes: int = 24
    children: int = 2
    depth: int | None = None
    serves: str = "all"
    acceptance: Literal["exact", "typical"] = "exact"
    epsilon: float = 0.09
    delta: float = 0.3

    name = "draft-heads"
    reads_states = True

    def __post_init__(self) -> None:
        for name in ("nodes", "children"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")
        if self.acceptance not in ("exact", "typical"):
            raise ValueError(f"acceptance {self.acceptance!r} is unknown; use exact or typical")
        self.lossless = self.acceptance == "exact"
        self.trail: list[Tensor] = []  # the newest states of the row and its twin, [R, M, D]; one at most
        self.shape: Shape = ()
        if self.heads is None:
            return
        if self.embed is None:
            raise ValueError("draft heads read the model's embedding table; give embed=model.get_input_embeddings()")
        depth = self.heads.num_ahead if self.depth is None else min(self.depth, self.heads.num_ahead)
        parallel = self.heads.settings.kind == "medusa"
        self.shape = build_tree(self.nodes, self.children, depth) if parallel else build_chain(self.children, depth)

    @property
    def max_draft(self) -> int:
        return len(self.shape) + 4

    def start_request(self) -> DraftHeadDecoder:
        return replace(self)  # a trail of its own

    def check(self, vocabulary: Vocabulary, modalities: Sequence[str]) -> None:
        if self.heads is None:
            raise ValueError(
                "draft-heads needs heads trained for the model, and there are none; train them with "
                "recipes/train_draft.py, or use another decoder"
            )

    def see(self, own: Tensor, other: Tensor | None) -> None:
        assert self.heads is not None
        new = own[None] if other is None else torch.stack([own, other])  # [R, n, D]
        if self.trail:
            new = torch.cat([self.trail[0][: len(new)], new], 1)  # guidance may have ended
        self.trail[:] = [new[:, -self.heads.num_states :]]

    def propose(self, row: Row) -> Draft:
        ranked = self._guess(row)
        placed: dict[int, int] = {}  # node of the shape → node of this tree
        self.tree: list[tuple[int, int]] = []
        for node, (parent, rank, depth) in enumerate(self.shape):
            known = ranked[depth - 1] if depth <= len(ranked) else []
            if rank < len(known) and known[rank] in row.ordinary and (parent < 0 or parent in placed):
                placed[node] = len(self.tree)
                self.tree.append((-1 if parent < 0 else placed[parent], known[rank]))
        return make_tree_draft(row, self.tree)

    def _guess(self, row: Row) -> list[list[int]]:
        """The candidates of each place behind the waiting tokens, the likeliest first."""
        assert self.heads is not None and self.embed is not None and row.score is not None
        unread = len(row.waiting)  # the newest state predicted the first of them
        most = min(self.shape[-1][2], self.heads.num_ahead - unread + 1, row.room - 1)
        if not self.trail or most < 1:
            return []
        states = self.trail[0]
        passing = self.heads.begin(states)
        ranked: list[list[int]] = []
        token = row.waiting[0]
        for place in range(unread - 1 + most):
            embedded = self.embed(torch.tensor([token], device=states.device)).expand(len(states), -1)
            out = passing.read(embedded)  # [R, D]
            if place + 1 < unread:
                token = row.waiting[place + 1]
                continue
            depth = len(ranked)
            logits = row.score(out[:1], out[1:] if len(out) > 1 else None, [depth], self.heads.get_head(place))
            ranked.append(row.rank(row.scale(logits), depth, self.children))
            token = ranked[-1][0]
            if token not in row.ordinary:
                break
        return ranked

    def verify(self, row: Row, draft: Draft, logits: Tensor) -> Verdict:
        scores = row.scale(logits)  # [1 + T, K]
        right = row.to_ids(row.draw(scores, draft.depths))
        if self.acceptance == "exact" or row.sampler.all_greedy:
            tokens, path = follow_tree(row, self.tree, right)
        else:
            tokens, path = self._follow_typical(row, row.sampler.compute_probabilities(scores), right)
        return Verdict(tokens, [*range(len(row.waiting)), *path], tokens[-1:], len(path))

    def _follow_typical(self, row: Row, p: Tensor, right: Sequence[int]) -> tuple[list[int], list[int]]:
        """The longest path of typical guesses, of several the likeliest; p [1 + T, K]. As `follow_tree`."""
        entropy = -(p * (p + 1e-5).log()).sum(1)
        threshold = torch.minimum(torch.full_like(entropy, self.epsilon), self.delta * (-entropy).exp())  # [1 + T]
        best = (0, 0.0, -1)  # length, log-probability, node
        reached = {-1: (0, 0.0)}
        for node, (parent, token) in enumerate(self.tree):
            if parent in reached:
                chance = p[1 + parent, row.candidates.find_index(token)]
                if chance > threshold[1 + parent]:
                    length, likely = reached[parent]
                    reached[node] = (length + 1, likely + float(chance.log()))
                    best = max(best, (*reached[node], node))
        path, at = list[int](), best[2]
        while at >= 0:
            path.insert(0, at)
            at = self.tree[at][0]
        tokens = [self.tree[node][1] for node in path]
        return [*tokens, right[1 + best[2]]], [len(row.waiting) + node for node in path]

"""Grouped speculative decoding (GSD, arXiv:2508.07747): a guess is judged together with similar tokens.

Among the many codes of a picture, near synonyms share the probability, so single tokens are refused needlessly. Here
the acceptance ratio is that of the sums of p and of q over the guess's group: of the ranks of p from ``neighbours``
below to ``neighbours`` - 1 above, those that have nearly the same probability and lie nearby. Lossy: a token may be
accepted for the probability of others in its group.

As in the authors' code, two codes lie nearby if the squared distance of the model's own embedding rows is below 0.5,
and a guess among the last ranks, which has no ``neighbours`` below, is judged alone. How long such rows are differs
from model to model; ``metric="codebook"`` asks for the distance of the tokenizer's code vectors, made of length 1.

Shapes: n guesses, K candidates, R neighbours, E dimensions of a row or code vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from unimodal.generation.fast.coupled_sjd import CoupledSpeculativeJacobi
from unimodal.generation.fast.protocol import Row


@dataclass
class GroupedSpeculative(CoupledSpeculativeJacobi):
    """SJD that judges a guess by its group.

    neighbours: ranks below the guess; 0 judges each alone. max_difference: of probabilities in a group. max_distance:
    of the vectors in a group, by ``metric``: "rows", squared, or "codebook". rows, code_vectors: block name → float
    [size, E], the model's embedding rows and the tokenizer's vectors; without them distances are not considered.
    """

    neighbours: int = 7
    max_difference: float = 0.15
    max_distance: float = 0.5
    metric: Literal["rows", "codebook"] = "rows"
    rows: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    code_vectors: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    name = "gsd"
    lossless = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.metric not in ("rows", "codebook"):
            raise ValueError(f"metric {self.metric!r} is unknown; use rows or codebook")

    def _compute_ratio(self, row: Row, p: Tensor, q: Tensor, index: Tensor) -> Tensor:
        if not self.neighbours:
            return super()._compute_ratio(row, p, q, index)
        order = p.sort(dim=1, descending=True, stable=True).indices  # [n, K] candidates by rank
        rank = (order == index).long().argmax(1, keepdim=True)  # [n, 1]
        near = rank + torch.arange(1 - self.neighbours, self.neighbours + 1, device=p.device)  # [n, 2R]
        inside = (near >= 0) & (near < p.shape[1]) & (rank + self.neighbours < p.shape[1])
        group = order.gather(1, near.clamp(0, p.shape[1] - 1))  # [n, 2R] candidates
        alike = inside & ((p.gather(1, group) - p.gather(1, index)).abs() < self.max_difference)
        vectors = (self.rows if self.metric == "rows" else self.code_vectors).get(row.block or "")
        if vectors is not None:
            alike &= self._measure(row, vectors.to(p.device).float(), group, index) < self.max_distance
        alike |= near == rank  # a guess belongs to its group
        mass_p = (p.gather(1, group) * alike).sum(1)
        mass_q = (q.gather(1, group) * alike).sum(1)
        return mass_p / mass_q.clamp_min(1e-30)

    def _measure(self, row: Row, vectors: Tensor, group: Tensor, index: Tensor) -> Tensor:
        """The distance of each candidate [n, 2R] from its guess [n, 1]; infinite for one that is no code."""
        size = len(vectors)
        ids = row.candidates.ids - row.ordinary.start  # [K]; a control among the candidates is no code
        codes, own = ids[group], ids[index]
        known = (codes >= 0) & (codes < size) & (own >= 0) & (own < size)
        if self.metric == "codebook":
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        apart = (vectors[codes.clamp(0, size - 1)] - vectors[own.clamp(0, size - 1)]).square().sum(2)
        apart = apart if self.metric == "rows" else apart.sqrt()
        return torch.where(known, apart, torch.inf)

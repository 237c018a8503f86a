"""Grouped speculative decoding (GSD, arXiv:2508.07747): a guess is judged together with similar tokens.

Among the many codes of a picture, near synonyms share the probability, so single tokens are refused needlessly. Here
the acceptance ratio is that of the sums of p and of q over the guess's group: its neighbours by rank of p that have
nearly the same probability and, if code vectors are known, lie nearby in the codebook. Lossy: a token may be accepted
for the probability of others in its group.

Shapes: n guesses, K candidates, R neighbours on each side, E dimensions of a code vector.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from unimodal.generation.fast.coupled_sjd import CoupledSpeculativeJacobi
from unimodal.generation.fast.speculation import Row


@dataclass
class GroupedSpeculative(CoupledSpeculativeJacobi):
    """SJD that judges a guess by its group.

    neighbours: ranks on each side of the guess. max_difference: of probabilities in a group. max_distance: of unit code
    vectors in a group. code_vectors: block name → float [size, E]; without them the codebook is not considered.
    """

    neighbours: int = 7
    max_difference: float = 0.15
    max_distance: float = 0.5
    code_vectors: dict[str, Tensor] = field(default_factory=dict, repr=False)

    name = "gsd"
    lossless = False

    def _compute_ratio(self, row: Row, p: Tensor, q: Tensor, index: Tensor) -> Tensor:
        order = p.sort(dim=1, descending=True, stable=True).indices  # [n, K] candidates by rank
        rank = (order == index).long().argmax(1, keepdim=True)  # [n, 1]
        near = rank + torch.arange(-self.neighbours, self.neighbours + 1, device=p.device)  # [n, 2R + 1]
        inside = (near >= 0) & (near < p.shape[1])
        group = order.gather(1, near.clamp(0, p.shape[1] - 1))  # [n, 2R + 1] candidates
        alike = inside & ((p.gather(1, group) - p.gather(1, index)).abs() < self.max_difference)
        if row.block in self.code_vectors:
            vectors = torch.nn.functional.normalize(self.code_vectors[row.block].to(p.device).float(), dim=1)
            size = len(vectors)
            ids = row.candidates.ids - row.ordinary.start  # [K]; a control among the candidates is no code
            codes, own = ids[group], ids[index]
            known = (codes >= 0) & (codes < size) & (own >= 0) & (own < size)
            distance = (vectors[codes.clamp(0, size - 1)] - vectors[own.clamp(0, size - 1)]).norm(dim=2)
            alike &= known & (distance < self.max_distance)
        alike |= group == index  # a guess belongs to its group
        mass_p = (p.gather(1, group) * alike).sum(1)
        mass_q = (q.gather(1, group) * alike).sum(1)
        return mass_p / mass_q.clamp_min(1e-30)

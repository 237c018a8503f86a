"""How a teacher's tokens lie to each other: distillation by a token-relation graph (TRG, arXiv 2306.12442).

Three terms over the states of the last blocks, in which widths may differ:

    local     each of `sample` tokens, drawn from the whole batch, has an edge to its `neighbours` nearest in the
              teacher; the softmax over the cosines along these edges is to be alike: KL(teacher ‖ student)
    global    a student's token is to lie nearest to the teacher's state of the same token among the sampled ones
              (InfoNCE over both, through a map to the teacher's width)
    inner     the cosines between the tokens of one document are to be alike: squared error ("contextual loss")

What the graph is made of and what each term is for is the paper's; it was written for the patches of pictures, its code
is not public, and the weights and temperature here are ours.

Each mean weighs a token by its medium, and a pair by the product of both; a medium of weight 0 takes no part.

Shapes: T tokens, D and E widths, M sampled tokens, k neighbours, S documents.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from unimodal.config import Config


class RelationConfig(Config):
    sample: int = Field(default=256, ge=2)
    neighbours: int = Field(default=16, ge=1)
    temperature: float = Field(default=0.1, gt=0)
    local_weight: float = Field(default=1.0, ge=0)
    global_weight: float = Field(default=0.1, ge=0)
    inner_weight: float = Field(default=1.0, ge=0)


class RelationMatch(nn.Module):
    """The three terms; the map of the global one is trained and not kept."""

    def __init__(self, cfg: RelationConfig, width: int, other_width: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.map = nn.Linear(width, other_width)

    def forward(
        self, student: Tensor, teacher: Tensor, documents: Tensor, chosen: Tensor, weights: Tensor
    ) -> dict[str, Tensor]:
        """student [T, D], teacher [T, E], the document int64 [T] and the weight [T] of each token; chosen: those
        sampled, int64 [M].

        Returns the terms by name, unweighted.
        """
        mine, other = student.float(), teacher.float()
        cfg, of = self.cfg, weights[chosen]
        return {
            "local": compare_neighbours(mine[chosen], other[chosen], of, cfg.neighbours, cfg.temperature),
            "global": contrast_tokens(self.map(mine[chosen]), other[chosen], of, cfg.temperature),
            "inner": compare_within(mine, other, documents, weights),
        }

    def weigh(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the terms."""
        cfg = self.cfg
        weights = {"local": cfg.local_weight, "global": cfg.global_weight, "inner": cfg.inner_weight}
        return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def compare_neighbours(
    student: Tensor, teacher: Tensor, weights: Tensor, neighbours: int, temperature: float
) -> Tensor:
    """student [M, D], teacher [M, E] and weights [M] → the mean divergence along the teacher's edges."""
    mine, other = (F.normalize(x, dim=1) for x in (student, teacher))
    itself = torch.eye(len(other), dtype=torch.bool, device=other.device)
    near = (other @ other.T).masked_fill(itself, -torch.inf)
    edges = near.topk(min(neighbours, len(other) - 1), 1).indices  # [M, k]
    p, q = ((x @ x.T).gather(1, edges).div(temperature).log_softmax(1) for x in (other, mine))
    return average((p.exp() * (p - q)).sum(1), weights)


def contrast_tokens(mapped: Tensor, teacher: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """The student's mapped tokens and the teacher's, each [M, E], and weights [M] → InfoNCE."""
    scores = F.normalize(mapped, dim=1) @ F.normalize(teacher, dim=1).T / temperature
    each = F.cross_entropy(scores, torch.arange(len(scores), device=scores.device), reduction="none")
    return average(each, weights)


def compare_within(student: Tensor, teacher: Tensor, documents: Tensor, weights: Tensor) -> Tensor:
    """student [T, D], teacher [T, E], weights [T] → the mean squared difference of the cosines of all pairs of one
    document."""
    total, weight = student.sum() * 0.0, weights.new_zeros(())
    mine, other = (F.normalize(x, dim=1) for x in (student, teacher))
    for number in documents.unique().tolist():
        here = (documents == number).nonzero().flatten()
        of = weights[here]
        squares = ((mine[here] @ mine[here].T) - (other[here] @ other[here].T)).square()
        total = total + of @ squares @ of
        weight = weight + of.sum().square()
    return total / weight.clamp_min(1e-12)


def average(numbers: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of numbers [M]; 0 where all weights are."""
    return (weights * numbers).sum() / weights.sum().clamp_min(1e-12)

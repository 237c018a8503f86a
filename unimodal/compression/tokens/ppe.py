"""Positional preservation embedding (PPE, arXiv 2510.22936): a merged token keeps the positions of its members.

Tokens are clustered by density peaks (DPC-KNN): a centre is dense and far from denser tokens, and every token joins the
nearest centre. The mean of a cluster gets the positions of its last members, the last of all first, and again from the
last where it has fewer: the rotary frequencies are split into as many sections, and each section is turned by one
position, so that the token is near to all the places it came from. As published, a merged token counts once in the
attention; with `counts_sizes` it counts for its members. The authors split the sections of a 3D rotary table, one part
for time and two for place; here positions are those of a line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unimodal.compression.method import Compressor, check_whole
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.choosing import merge_clusters
from unimodal.compression.tokens.density import find_density_peaks

NEIGHBOURS = 5


@dataclass
class PPE(Compressor):
    """Merge clusters of tokens into means that keep the positions of their members (PPE, arXiv 2510.22936).

    hidden [B, N, D] → `span.count` means with `num_positions` positions each; 1 position is plain merging.
    counts_sizes: log(size) is added to the attention over merged tokens. Raises ValueError for less than one position,
    and for what `Method` refuses.
    """

    paper: ClassVar[str] = "Positional preservation embedding (PPE), arXiv 2510.22936"

    num_positions: int = 8
    counts_sizes: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("num_positions", self.num_positions, 1)

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        index, assigned = find_density_peaks(hidden.float(), span.count, count_neighbours(span.count))
        merge, sizes = merge_clusters(assigned, span.count, span.sizes)
        members = choose_members(assigned, span.count, self.num_positions)
        return Plan(index, merge, sizes=sizes if self.counts_sizes else None, members=members)


def count_neighbours(count: int) -> int:
    """How many neighbours, itself included, make a token's density, for so many clusters: fewer for few clusters."""
    return NEIGHBOURS if count >= NEIGHBOURS else min(3, max(count // 2, 1))


def choose_members(assigned: Tensor, count: int, num_positions: int) -> Tensor:
    """The last P = `num_positions` members of every cluster, the last first, repeated in turn: int64 [B, M, P]."""
    num = assigned.shape[1]
    belongs = assigned[:, None] == torch.arange(count, device=assigned.device)[:, None]  # [B, M, N]
    order = torch.where(belongs, torch.arange(num, device=assigned.device), -1).sort(-1, descending=True).values
    at = torch.arange(num_positions, device=assigned.device) % belongs.sum(-1, keepdim=True)
    return order.gather(-1, at)

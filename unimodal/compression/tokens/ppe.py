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
        index, assigned = find_density_peaks(hidden.float(), span.count)
        merge, sizes = merge_clusters(assigned, span.count, span.sizes)
        members = choose_members(assigned, span.count, self.num_positions)
        return Plan(index, merge, sizes=sizes if self.counts_sizes else None, members=members)


def find_density_peaks(states: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """DPC-KNN on states [B, N, D] → centres int64 [B, M], ascending, and the cluster of every token int64 [B, N]."""
    distance = torch.cdist(states, states) / states.shape[-1] ** 0.5
    num = distance.shape[1]
    near = distance.topk(min(count_neighbours(count), num), largest=False).values
    density = (-near.square().mean(-1)).exp()  # [B, N]
    density = density - torch.arange(num, device=states.device) * 1e-6  # of equal ones, the earlier is the denser
    denser = density[:, None] > density[..., None]  # [B, N, N]
    top = distance.amax((1, 2))[:, None]
    to_denser = distance.masked_fill(~denser, torch.inf).amin(-1)
    peak = torch.where(to_denser.isinf(), top, to_denser) * density
    centres = peak.argsort(dim=-1, descending=True, stable=True)[:, :count].sort(-1).values
    to_centres = distance.gather(1, centres[..., None].expand(-1, -1, num))  # [B, M, N]
    assigned = to_centres.argmin(1)
    own = torch.arange(count, device=states.device).expand_as(centres)
    return centres, assigned.scatter(1, centres, own)  # equal tokens may be centres: each its own


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

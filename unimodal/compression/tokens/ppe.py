"""Positional preservation embedding (PPE, arXiv 2510.22936): a merged token keeps the positions of its members.

Tokens are clustered by density peaks (DPC-KNN): centres are dense and far from denser tokens; every token joins the
nearest centre. The mean of a cluster gets up to 8 of its members' positions: the rotary frequencies are split into as
many sections, each turned by one of them, so that the token is near to all the places it came from.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unimodal.compression.method import Compressor, Plan, Span
from unimodal.compression.tokens.choosing import merged_into

NEIGHBOURS = 5


@dataclass
class PPE(Compressor):
    """num_positions: source positions of a merged token; 1 is plain merging."""

    num_positions: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_positions < 1:
            raise ValueError(f"num_positions is {self.num_positions}; give at least 1")

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        index, assigned = density_peaks(hidden.float(), span.count)
        merge, sizes = merged_into(assigned, span.count, span.sizes)
        return Plan(index, merge, sizes=sizes, members=members_of(assigned, span.count, self.num_positions))


def density_peaks(states: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """DPC-KNN on states [B, N, D] -> centres int64 [B, M], ascending, and the cluster of every token [B, N]."""
    distance = torch.cdist(states, states) / states.shape[-1] ** 0.5
    num = distance.shape[1]
    near = distance.topk(min(NEIGHBOURS, num), largest=False).values
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


def members_of(assigned: Tensor, count: int, num_positions: int) -> Tensor:
    """For every cluster `num_positions` of its members, evenly spaced, repeated in small ones: int64 [B, M, P]."""
    num = assigned.shape[1]
    belongs = assigned[:, None] == torch.arange(count, device=assigned.device)[:, None]  # [B, M, N]
    order = torch.where(belongs, torch.arange(num, device=assigned.device), num).sort(-1).values  # members first
    sizes = belongs.sum(-1, keepdim=True)
    at = torch.arange(num_positions, device=assigned.device) * sizes // num_positions
    return order.gather(-1, at.clamp(max=num - 1))

"""CenterCLIP (arXiv 2205.00823): the tokens of every segment of a clip are clustered, and the medoids go on.

A segment is several frames, so that what repeats from frame to frame goes; the authors cut 12 frames into 6 segments.
k-medoids by Euclidean distance with a KKZ start: the token of the largest norm first, then always the one farthest from
its nearest centre. Here a frame is a run of the span, and a picture or a sound, whose runs are codebooks, is one
segment a run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from unimodal.compression.method import Compressor, check_whole
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.choosing import choose_spread_out
from unimodal.compression.tokens.grids import allot

ITERATIONS = 80


@dataclass
class CenterCLIP(Compressor):
    """Keep the medoids of every segment, in their order (CenterCLIP, arXiv 2205.00823).

    hidden [B, N, D] → `span.count` tokens, shared out among the segments in proportion to their lengths.
    frames: of a clip, in a segment. Raises ValueError for less than one, and for what `Method` refuses.
    """

    paper: ClassVar[str] = "CenterCLIP, arXiv 2205.00823"

    frames: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("frames", self.frames, 1)

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        chosen, offset = [], 0
        step = self.frames if span.modality == "video" else 1
        lengths = [sum(span.segments[start : start + step]) for start in range(0, len(span.segments), step)]
        for length, count in zip(lengths, allot(span.count, lengths), strict=True):
            if count:
                chosen.append(offset + find_medoids(hidden[:, offset : offset + length].float(), count))
            offset += length
        return Plan(torch.cat(chosen, 1))


def find_medoids(states: Tensor, count: int) -> Tensor:
    """The k-medoids of states [B, N, D], M = `count` of them, int64 [B, M], ascending."""
    distance = torch.cdist(states, states)
    centres = choose_spread_out(distance, states.norm(dim=-1).argmax(-1), count, torch.minimum)  # KKZ
    for _ in range(ITERATIONS):
        near = distance.gather(1, centres[..., None].expand(-1, -1, distance.shape[2])).argmin(1)  # [B, N], cluster
        own = torch.arange(count, device=near.device).expand_as(centres)
        near = near.scatter(1, centres, own)  # among equal tokens too
        member = F.one_hot(near, count)  # [B, N, M]
        cost = (distance @ member.float()).masked_fill(member == 0, torch.inf)  # of each member as the medoid
        new = cost.argmin(1).sort(-1).values
        if torch.equal(new, centres):
            break
        centres = new
    return centres

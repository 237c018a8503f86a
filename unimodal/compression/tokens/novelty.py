"""Novelty: every frame of a clip adds the tokens that earlier frames lack, and nothing is kept twice.

Every frame gets an equal number of tokens. Each of them is the token that is farthest by cosine from everything chosen
so far, in this frame and in earlier ones. A picture is a still clip of `repeats` frames, which fill it in. The rule is
ours; what PVC (arXiv 2412.09613) learns is its model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unimodal.compression.method import Compressor, check_whole
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.choosing import compute_cosines
from unimodal.compression.tokens.grids import allot


@dataclass
class Novelty(Compressor):
    """Keep of every frame what earlier frames lack.

    hidden [B, N, D] → `span.count` tokens, in equal numbers from every frame.
    repeats: the number of frames that a picture or a sound counts for. Raises ValueError for less than one repeat, and
    for what `Method` refuses.
    """

    repeats: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("repeats", self.repeats, 1)

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        is_clip = span.modality == "video"
        lengths = span.segments if is_clip else (len(span),) * self.repeats
        index = choose_progressively(compute_cosines(hidden), lengths, allot(span.count, lengths), is_clip)
        return Plan(index.sort(-1).values)


def choose_progressively(similar: Tensor, lengths: tuple[int, ...], counts: list[int], is_clip: bool) -> Tensor:
    """Tokens chosen frame by frame, by cosines [B, N, N] → in the order chosen, int64 [B, M].

    lengths, counts: the tokens of each frame, and how many of them are chosen. is_clip: frames are consecutive runs;
    otherwise every frame is the whole span again.
    """
    rows = torch.arange(len(similar), device=similar.device)
    nearest = similar.new_full(similar.shape[:2], -torch.inf)  # cosine with the nearest chosen
    typical = similar.sum(-1)  # the first of all is the one least like the others
    taken = torch.zeros_like(nearest, dtype=torch.bool)
    chosen: list[Tensor] = []
    offset = 0
    for length, count in zip(lengths, counts, strict=True):
        outside = torch.ones(similar.shape[1], dtype=torch.bool, device=similar.device)
        outside[offset : offset + length] = False
        for _ in range(count):
            likeness = nearest if chosen else typical
            new = likeness.masked_fill(taken | outside, torch.inf).argmin(-1)  # [B]
            taken[rows, new] = True
            nearest = torch.maximum(nearest, similar[rows, new])
            chosen.append(new)
        offset += length if is_clip else 0
    return torch.stack(chosen, 1)

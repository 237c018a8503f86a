"""Progressive visual token compression (PVC, arXiv 2412.09613): every frame adds tokens that earlier frames lack.

A picture is a static clip of `repeats` frames. Every frame gets an equal number of tokens. Each of them is the token
that is farthest by cosine from everything chosen so far, in this frame and in earlier ones: a still scene is filled in
over the frames, and nothing is kept twice. In the paper the tokens come from an encoder with causal attention over the
frames and norms that depend on the frame's number; `ProgressiveEncoder` is that part, to be trained with the decoder.
Untrained, it adds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.compression.method import Compressor
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.choosing import compute_cosines
from unimodal.compression.tokens.grids import allot


class ProgressiveEncoder(nn.Module):
    """Attention that is causal over frames, with norms scaled and shifted by the frame's number; zero at first."""

    def __init__(self, width: int, num_heads: int = 4, max_frames: int = 64) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.frame = nn.Embedding(max_frames, 2 * width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.frame.weight)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, frames: Tensor) -> Tensor:
        """x [B, M, D] and the frame of each token, int64 [B, M] → what is added to x, [B, M, D]."""
        scale, shift = self.frame(frames.clamp(max=self.frame.num_embeddings - 1)).chunk(2, -1)
        h = F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in self.qkv(h).chunk(3, -1))
        seen = frames[:, None, :, None] >= frames[:, None, None, :]  # [B, 1, M, M]
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2))


@dataclass
class PVC(Compressor):
    """Keep of every frame what earlier frames lack (progressive visual token compression, PVC, arXiv 2412.09613).

    hidden [B, N, D] → `span.count` tokens, in equal numbers from every frame.
    repeats: the number of frames that a picture or a sound counts for. encoder: adds to the states of the tokens that
    go on; without one they are kept as they are. Raises ValueError for less than one repeat, and for what `Method`
    refuses.
    """

    paper: ClassVar[str] = "PVC, arXiv 2412.09613"

    repeats: int = 4
    encoder: ProgressiveEncoder | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.repeats < 1:
            raise ValueError(f"repeats is {self.repeats}; give at least 1")

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        is_clip = span.modality == "video"
        lengths = span.segments if is_clip else (len(span),) * self.repeats
        index, frames = choose_progressively(compute_cosines(hidden), lengths, allot(span.count, lengths), is_clip)
        index, order = index.sort(-1)
        frames = frames.gather(1, order)
        if self.encoder is None:
            return Plan(index)
        states = hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1]))
        return Plan(index, states=states + self.encoder(states, frames))


def choose_progressively(
    similar: Tensor, lengths: tuple[int, ...], counts: list[int], is_clip: bool
) -> tuple[Tensor, Tensor]:
    """Tokens chosen frame by frame, by cosines [B, N, N] → in the order chosen, and the frame of each, int64 [B, M].

    lengths, counts: the tokens of each frame, and how many of them are chosen. is_clip: frames are consecutive runs;
    otherwise every frame is the whole span again.
    """
    rows = torch.arange(len(similar), device=similar.device)
    nearest = similar.new_full(similar.shape[:2], -torch.inf)  # cosine with the nearest chosen
    typical = similar.sum(-1)  # the first of all is the one least like the others
    taken = torch.zeros_like(nearest, dtype=torch.bool)
    chosen: list[Tensor] = []
    frames: list[Tensor] = []
    offset = 0
    for frame, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        outside = torch.ones(similar.shape[1], dtype=torch.bool, device=similar.device)
        outside[offset : offset + length] = False
        for _ in range(count):
            likeness = nearest if chosen else typical
            new = likeness.masked_fill(taken | outside, torch.inf).argmin(-1)  # [B]
            taken[rows, new] = True
            nearest = torch.maximum(nearest, similar[rows, new])
            chosen.append(new)
            frames.append(torch.full_like(new, frame))
        offset += length if is_clip else 0
    return torch.stack(chosen, 1), torch.stack(frames, 1)

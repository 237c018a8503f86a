"""Progressive visual token compression (PVC, arXiv 2412.09613): every frame adds what earlier frames lack, as learnt.

A picture is a static clip of `repeats` frames. An encoder whose attention is causal over the frames, with norms that
depend on the frame's number, lets every frame know what earlier ones said; then each frame is averaged over its share
of the tokens. The encoder is trained with the decoder, and without one the method refuses. In the paper it is the last
layers of a picture encoder and a projector; codes have no picture encoder, and here it acts on their embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimodal.compression.learned import DecoderShape, check_width
from unimodal.compression.method import check_whole
from unimodal.compression.plan import Plan, Span
from unimodal.compression.tokens.grids import allot, average_line, find_grid, find_raster
from unimodal.compression.tokens.learned import LearnedCompressor
from unimodal.compression.tokens.stride import choose_evenly


class ProgressiveEncoder(nn.Module):
    """Attention that is causal over frames, with norms scaled and shifted by the frame's number; zero at first."""

    def __init__(self, width: int, num_heads: int = 4, max_frames: int = 64) -> None:
        super().__init__()
        self.width, self.num_heads = width, num_heads
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
class PVC(LearnedCompressor):
    """Average frames that a learned encoder made different (progressive visual token compression, PVC, arXiv
    2412.09613).

    hidden [B, N, D] → `span.count` tokens, in equal shares from every frame.
    encoder: trained with the decoder. repeats: the number of frames that a picture or a sound counts for. Raises
    ValueError for less than one repeat, on entering without an encoder, for a decoder of another width, and for what
    `Method` refuses.
    """

    paper: ClassVar[str] = "PVC, arXiv 2412.09613"
    part: ClassVar[str] = "encoder"

    repeats: int = 4
    encoder: ProgressiveEncoder | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("repeats", self.repeats, 1)

    @classmethod
    def make_part(cls, shape: DecoderShape) -> ProgressiveEncoder:
        return ProgressiveEncoder(shape.width)

    def plan(self, hidden: Tensor, span: Span) -> Plan:  # hidden [B, N, D]
        assert self.encoder is not None
        check_width(self.encoder.width, hidden)
        lengths = span.segments if span.modality == "video" else (len(span),) * self.repeats
        clip = hidden if span.modality == "video" else hidden.repeat(1, self.repeats, 1)
        frames = torch.repeat_interleave(torch.tensor(lengths)).to(hidden.device).expand(len(hidden), -1)
        encoded = clip + self.encoder(clip, frames)
        parts = []
        for frame, count in zip(encoded.split(list(lengths), 1), allot(span.count, lengths), strict=True):
            if count:
                parts.append(average_frame(frame.shape[1], count, span.modality != "audio").to(frame) @ frame)
        return Plan(choose_evenly(len(span), span.count, hidden), states=torch.cat(parts, 1))


def average_frame(num: int, count: int, is_raster: bool) -> Tensor:
    """The matrix [M, N] that averages of N tokens over M windows, squares of a raster where they form a grid."""
    sides = find_raster(num) if is_raster else None
    grid = find_grid(count, sides) if sides else None
    if sides is None or grid is None:
        return average_line(num, count)
    return torch.kron(average_line(sides[0], grid[0]), average_line(sides[1], grid[1]))

"""H.264 and VP9 at the bits of a film's codes, through libav. Only what codes pictures counts: no container, and of
H.264 no parameter sets and notes, which films could share.

Shapes: T frames, S side of a frame.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import torch
from torch import Tensor

#: codec → encoder, decoder, its options, and the coarsest of its qualities (crf), of which 0 is the finest
CODECS: dict[str, tuple[str, str, dict[str, str], int]] = {
    "h264": ("libx264", "h264", {"preset": "slow", "threads": "1"}, 51),
    "vp9": ("libvpx-vp9", "vp9", {"deadline": "good", "cpu-used": "3", "b": "0", "threads": "1"}, 63),
}
START = re.compile(b"\0\0\0?\1")  # of a unit of H.264's byte stream
SHARED_UNITS = (6, 7, 8, 9)  # notes, parameter sets, delimiters


@dataclass(frozen=True)
class CodedFilm:
    """What came back, and the bytes that it took."""

    frames: Tensor  # float32 [T, 3, S, S] in [0, 1]
    num_bytes: int


class FilmCoder:
    """One film by one codec, at as many qualities as are asked for: each is coded once.

    frames: [T, 3, S, S] in [0, 1]; an odd side is extended by its edge pixels while it is coded.
    """

    def __init__(self, codec: str, frames: Tensor, frames_per_second: float) -> None:
        self.encoder, self.decoder, self.options, self.coarsest = CODECS[codec]
        self.codec, self.shape = codec, frames.shape
        self.rate = Fraction(frames_per_second).limit_denominator(1001)
        padded = torch.nn.functional.pad(frames, (0, frames.shape[3] % 2, 0, frames.shape[2] % 2), mode="replicate")
        self.pictures = (padded.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
        self.packets: dict[int, list[bytes]] = {}

    def choose_within(self, budget: float) -> CodedFilm:
        """The finest quality within so many bytes; the coarsest where that is larger."""
        low, high = 0, self.coarsest  # the finest that may fit, and one that does unless it is the coarsest
        if self._count(high) <= budget:
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if self._count(middle) <= budget else (middle + 1, high)
        return CodedFilm(self._decode(high), self._count(high))

    def _count(self, quality: int) -> int:
        packets = self.packets.get(quality)
        if packets is None:
            packets = self.packets[quality] = self._encode(quality)
        return sum(count_picture_bytes(packet) if self.codec == "h264" else len(packet) for packet in packets)

    def _encode(self, quality: int) -> list[bytes]:
        context = av.VideoCodecContext.create(self.encoder, "w")
        assert isinstance(context, av.VideoCodecContext)
        context.height, context.width = self.pictures.shape[1:3]
        context.pix_fmt, context.time_base, context.framerate = "yuv420p", 1 / self.rate, self.rate
        context.options = {**self.options, "crf": str(quality)}
        packets: list[bytes] = []
        for number, picture in enumerate(self.pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, 1 / self.rate
            packets += [bytes(packet) for packet in context.encode(frame)]
        return packets + [bytes(packet) for packet in context.encode(None)]

    def _decode(self, quality: int) -> Tensor:
        context = av.VideoCodecContext.create(self.decoder, "r")
        assert isinstance(context, av.VideoCodecContext)
        found: list[np.ndarray] = []
        for data in [*self.packets[quality], None]:
            decoded = context.decode(None if data is None else av.Packet(data))
            found += [frame.to_ndarray(format="rgb24") for frame in decoded]
        frames = torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255
        return frames[..., : self.shape[2], : self.shape[3]]


def count_picture_bytes(packet: bytes) -> int:
    """Bytes of a packet of H.264 without units that films could share."""
    starts = [*START.finditer(packet)]
    ends = [*(match.start() for match in starts[1:]), len(packet)]
    units = zip(starts, ends, strict=True)
    return sum(end - unit.start() for unit, end in units if packet[unit.end()] & 31 not in SHARED_UNITS)

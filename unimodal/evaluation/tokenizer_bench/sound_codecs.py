"""Opus (RFC 6716) at the bits of a sound's codes, through libav. Only the packets count: a container's headers could be
shared.

Shapes: T samples.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import av
import numpy as np
import torch
from torch import Tensor

from unimodal.media.audio import resample

OPUS_RATE, PACKET_S = 48_000, 0.06
#: bits a second that libopus is asked for: packets of 19 bytes, below which they hold no sound, and of 1,920
LOWEST_RATE, HIGHEST_RATE = 2_533, 256_000


@dataclass(frozen=True)
class OpusSound:
    """What came back, and the bits of its packets."""

    samples: Tensor  # float32 [T]
    num_bits: int


def choose_bit_rate(bits_per_second: float) -> int:
    """The rate that libopus is asked for: that of the nearest whole bytes a packet, to which it rounds a constant rate
    itself, so that rates which differ by less are coded once. Never one at which it would keep nothing, nor more than
    it takes, which the one code of a sound shorter than a frame can ask for."""
    packet = math.floor(bits_per_second * PACKET_S / 8 + 0.5)
    return min(max(LOWEST_RATE, round(packet * 8 / PACKET_S)), HIGHEST_RATE)


def is_within(num_bits: float, seconds: float, bits_per_second: float) -> bool:
    """Whether packets are within the budget of as many whole packets, or a tenth more."""
    return num_bits <= 1.1 * bits_per_second * math.ceil(seconds / PACKET_S) * PACKET_S


def code_with_opus(samples: Tensor, rate_hz: int, bit_rate: int) -> OpusSound:
    """samples: float32 [T] at rate_hz, mono → the same length at the same rate, coded in packets of 60 ms at a constant
    rate; of speech little is understood below 6 kbit/s."""
    memory = io.BytesIO()
    wide = resample(samples, rate_hz, OPUS_RATE)
    num_bits = 0
    with av.open(memory, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=OPUS_RATE, layout="mono")
        stream.codec_context.bit_rate = bit_rate
        stream.codec_context.options = {"frame_duration": "60", "vbr": "off", "application": "audio"}
        block = (wide.clamp(-1, 1) * 32767).short().numpy()[None]
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(block), format="s16", layout="mono")
        frame.sample_rate = OPUS_RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            num_bits += 8 * packet.size
            container.mux(packet)
    memory.seek(0)
    with av.open(memory, "r") as container:
        parts = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
        scale = 32768.0 if parts and parts[0].dtype.kind == "i" else 1.0
    decoded = torch.from_numpy(np.concatenate(parts).astype(np.float32) / scale) if parts else torch.zeros(0)
    back = resample(decoded, OPUS_RATE, rate_hz)[: len(samples)]
    back = torch.nn.functional.pad(back, (0, len(samples) - len(back)))
    return OpusSound(back, num_bits)

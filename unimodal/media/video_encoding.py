"""Frames → the bytes of a film file: MP4 and WebM through PyAV, GIF and animated WebP through Pillow.

Shapes: H height, W width.
"""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
from PIL import Image

_ENCODERS = {  # suffix → container, encoder and its options: visually lossless at small sizes
    ".mp4": ("mp4", "libx264", {"crf": "16", "preset": "medium"}),
    ".webm": ("webm", "libvpx-vp9", {"crf": "16", "b": "0", "deadline": "good", "cpu-used": "2"}),
}


def encode_video(frames: list[np.ndarray], suffix: str, fps: float) -> bytes:
    """uint8 [H, W, 3] frames as the film file of a suffix. Raises ValueError for a size or rate that it cannot hold."""
    return _encode_pillow(frames, suffix, fps) if suffix in (".gif", ".webp") else _encode_av(frames, suffix, fps)


def _encode_pillow(frames: list[np.ndarray], suffix: str, fps: float) -> bytes:
    """GIF counts in 10 ms, WebP in 1 ms: each frame ends at the nearest count, so that errors do not add up."""
    unit_ms = 10 if suffix == ".gif" else 1
    ends_ms = [round(index * 1000 / fps / unit_ms) * unit_ms for index in range(len(frames) + 1)]
    durations_ms = [end - start for start, end in zip(ends_ms, ends_ms[1:], strict=False)]
    if min(durations_ms) < 1 or (suffix == ".gif" and min(durations_ms) < 20):
        raise ValueError(f"fps={fps:g} is too fast for {suffix}; use .mp4, or at most 50 frames a second")
    images = [Image.fromarray(frame) for frame in frames]
    if suffix == ".gif":
        images = [image.quantize(256, dither=Image.Dither.NONE) for image in images]
    options = {"optimize": False, "disposal": 1} if suffix == ".gif" else {"lossless": True}
    format_name = "GIF" if suffix == ".gif" else "WEBP"
    memory = io.BytesIO()
    images[0].save(
        memory, format_name, save_all=True, append_images=images[1:], duration=durations_ms, loop=0, **options
    )
    encoded = memory.getvalue()
    if suffix == ".webp" and len(frames) > 1 and encoded[12:16] == b"VP8L":  # all frames are equal
        return _encode_still_webp(encoded[12:], frames[0].shape[1], frames[0].shape[0], ends_ms[-1])
    return encoded


def _encode_still_webp(picture: bytes, width: int, height: int, duration_ms: int) -> bytes:
    """One still, as an animation of one frame: libwebp drops the duration of a film that never changes."""

    def make_chunk(name: bytes, body: bytes) -> bytes:
        return name + len(body).to_bytes(4, "little") + body + b"\0" * (len(body) % 2)

    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = make_chunk(b"VP8X", b"\2\0\0\0" + size) + make_chunk(b"ANIM", b"\xff\xff\xff\xff\0\0")
    chunks += make_chunk(b"ANMF", bytes(6) + size + duration_ms.to_bytes(3, "little") + b"\2" + picture)
    return make_chunk(b"RIFF", b"WEBP" + chunks)


def _encode_av(frames: list[np.ndarray], suffix: str, fps: float) -> bytes:
    container_format, encoder, options = _ENCODERS[suffix]
    rate = Fraction(fps).limit_denominator(1001)
    height, width = frames[0].shape[:2]
    memory = io.BytesIO()
    try:
        # bitexact: no random identity and no version in the file
        with av.open(memory, "w", format=container_format, options={"fflags": "+bitexact"}) as container:
            stream = container.add_stream(encoder, rate=rate, options=dict(options))
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
            stream.thread_count = 1  # the same bytes on every machine
            for index, pixels in enumerate(frames):
                even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
                frame = av.VideoFrame.from_ndarray(even, format="rgb24")
                frame.pts, frame.time_base = index, 1 / rate
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise ValueError(
            f"a film of {width}×{height} at {fps:g} frames a second cannot be encoded as {suffix} ({error}); use .gif"
        ) from None
    return memory.getvalue()

"""A sound that is sent while it is still being made: its first bytes before its length is known.

WAV, MP3, FLAC, Ogg and bare samples, each as a streaming writer leaves them (a WAV header with the largest length).
"""

from __future__ import annotations

import asyncio
import io
import struct
from collections.abc import AsyncGenerator

import av
import numpy as np
import soundfile  # type: ignore[import-untyped]
import torch
from starlette.types import Receive, Scope, Send
from torch import Tensor

from unimodal.generation.request import GenerationRequest
from unimodal.media.audio import resample
from unimodal.pipeline.speech import make_pause
from unimodal.serve.answer import MediumPiece, Piece
from unimodal.serve.media_output import PCM_RATE_HZ, PCM_TYPE, SOUNDS, round_samples
from unimodal.serve.service import CLIENT_LEFT, Exchange, OpenResponse, Service, to_api_error, wait_for_disconnect

#: name → PyAV's container and codec
STREAMED = {"mp3": ("mp3", "libmp3lame"), "flac": ("flac", "flac"), "opus": ("ogg", "libopus")}
OPUS_RATE_HZ = 24_000
UNKNOWN_LENGTH = 0xFFFFFFFF


class _BareWriter:
    """Little-endian samples, behind a header or none."""

    def __init__(self, header: bytes = b"") -> None:
        self.header = header

    def write(self, samples: np.ndarray) -> bytes:
        header, self.header = self.header, b""
        return header + samples.tobytes()

    def finish(self) -> bytes:
        return self.header


class _ContainerWriter:
    """PyAV's encoders, into a file that cannot be rewound."""

    def __init__(self, kind: str, rate_hz: int) -> None:
        self.rate_hz = rate_hz
        self.pieces: list[bytes] = []
        container, codec = STREAMED[kind]
        options = {"write_xing": "0"} if kind == "mp3" else {}
        self.container = av.open(_Pipe(self.pieces), "w", format=container, options=options)
        stream = self.container.add_stream(codec, rate=rate_hz, layout="mono")
        assert isinstance(stream, av.AudioStream)
        self.stream = stream

    def write(self, samples: np.ndarray) -> bytes:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="s16", layout="mono")
        frame.sample_rate = self.rate_hz
        self.container.mux(self.stream.encode(frame))
        return self._take()

    def finish(self) -> bytes:
        self.container.mux(self.stream.encode(None))
        self.container.close()
        return self._take()

    def _take(self) -> bytes:
        data = b"".join(self.pieces)
        self.pieces.clear()
        return data


class _Pipe:
    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def write(self, data: bytes) -> int:
        self.pieces.append(bytes(data))
        return len(data)


class _VorbisWriter:
    """libsndfile's encoder, which PyAV's wheels lack: it writes Ogg pages one behind the other."""

    def __init__(self, rate_hz: int) -> None:
        name, subtype, _ = SOUNDS["ogg"]
        self.memory, self.taken = io.BytesIO(), 0
        self.file = soundfile.SoundFile(self.memory, "w", rate_hz, 1, subtype, format=name)

    def write(self, samples: np.ndarray) -> bytes:
        self.file.write(samples)
        self.file.flush()
        return self._take()

    def finish(self) -> bytes:
        self.file.close()
        return self._take()

    def _take(self) -> bytes:
        data = self.memory.getvalue()[self.taken :]
        self.taken += len(data)
        return data


class SoundStream:
    """`write` the sounds one after the other, then `finish`; each gives the bytes that are ready."""

    def __init__(self, kind: str, rate_hz: int) -> None:
        self.given_hz = rate_hz
        self.rate_hz = {"pcm": PCM_RATE_HZ, "opus": OPUS_RATE_HZ}.get(kind, rate_hz)
        self.media_type = PCM_TYPE if kind == "pcm" else SOUNDS[kind][2]
        self.writer: _BareWriter | _VorbisWriter | _ContainerWriter
        if kind in ("wav", "pcm"):
            self.writer = _BareWriter(make_wav_header(rate_hz) if kind == "wav" else b"")
        else:
            self.writer = _VorbisWriter(rate_hz) if kind == "ogg" else _ContainerWriter(kind, self.rate_hz)

    def write(self, sound: Tensor) -> bytes:
        """[T] in [-1, 1] at the rate of the stream's making → bytes."""
        sound = sound.detach().float().cpu()
        if self.rate_hz != self.given_hz:
            sound = resample(sound, self.given_hz, self.rate_hz)
        return self.writer.write(round_samples(sound))

    def finish(self) -> bytes:
        return self.writer.finish()


def make_wav_header(rate_hz: int) -> bytes:
    """Of 16-bit mono samples, as many as will come."""
    sizes = struct.pack("<4sI4s4sI", b"RIFF", UNKNOWN_LENGTH, b"WAVE", b"fmt ", 16)
    return sizes + struct.pack("<HHIIHH4sI", 1, 1, rate_hz, 2 * rate_hz, 2, 16, b"data", UNKNOWN_LENGTH)


class StreamedSound(OpenResponse):
    """Bytes of a sound as they come. What goes wrong behind the first of them, the server's end included, breaks the
    response off, so that no client takes it for whole."""

    def __init__(self, exchange: Exchange, pieces: AsyncGenerator[bytes, None], media_type: str) -> None:
        super().__init__(media_type=media_type)
        del self.headers["content-length"]
        self.exchange, self.pieces = exchange, pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = CLIENT_LEFT
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        pump = asyncio.ensure_future(self._send_all(send))
        gone = asyncio.ensure_future(wait_for_disconnect(receive))
        ended = asyncio.ensure_future(self.exchange.service.ended.wait())
        try:
            seconds = self.exchange.seconds_left
            await asyncio.wait({pump, gone, ended}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                error = pump.exception()
                assert error is None or isinstance(error, Exception)
                status = 200 if error is None else to_api_error(error).status
            elif not gone.done():
                status = 503 if ended.done() else 504
        finally:
            for task in (pump, gone, ended):
                if not task.done():
                    task.cancel()
                    await asyncio.wait({task})
            await self.pieces.aclose()
            self.exchange.close(status)

    async def _send_all(self, send: Send) -> None:
        async for data in self.pieces:
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def hear_sounds(
    service: Service, request: GenerationRequest, pieces: asyncio.Queue[Piece | None]
) -> AsyncGenerator[Tensor, None]:
    """The sounds [T] of an answer whose reader fills `pieces`, each as soon as it is there. Closing ends the answer."""
    answer = asyncio.ensure_future(service.answer(request))
    answer.add_done_callback(lambda _: pieces.put_nowait(None))
    try:
        while (piece := await pieces.get()) is not None:
            if isinstance(piece, MediumPiece) and piece.modality == "audio":
                yield await service.decode("audio", piece.codes)
        await answer
    finally:
        if not answer.done():
            answer.cancel()
            await asyncio.wait({answer})


async def encode_sounds(
    service: Service, stream: SoundStream, first: Tensor, others: AsyncGenerator[Tensor, None]
) -> AsyncGenerator[bytes, None]:
    """The bytes of several sounds with a pause between them."""
    try:
        yield await service.run(stream.write, first)
        async for sound in others:
            yield await service.run(stream.write, add_pause(sound, stream.given_hz))
        yield await service.run(stream.finish)
    finally:
        await others.aclose()


def add_pause(sound: Tensor, rate_hz: float | None) -> Tensor:
    """A further utterance [T] with the pause before it."""
    return torch.cat([make_pause(sound, rate_hz), sound])

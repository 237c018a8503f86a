"""Media of an answer → the bytes of a file, in memory."""

from __future__ import annotations

import base64
import io

import numpy as np
import soundfile  # type: ignore[import-untyped]
import torch
from PIL import Image, ImageOps
from torch import Tensor

from unimodal.media.access import encode_medium
from unimodal.media.image import to_bytes
from unimodal.media.registry import MEDIA
from unimodal.serve.protocol import ApiError

#: name → Pillow's format and its options
PICTURES: dict[str, tuple[str, dict[str, object]]] = {
    "png": ("PNG", {}),
    "jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    "webp": ("WEBP", {"lossless": True}),
}
#: name → soundfile's format and subtype, media type
SOUNDS = {
    "wav": ("WAV", "PCM_16", "audio/wav"),
    "flac": ("FLAC", "PCM_16", "audio/flac"),
    "mp3": ("MP3", "MPEG_LAYER_III", "audio/mpeg"),
    "ogg": ("OGG", "VORBIS", "audio/ogg"),
    "opus": ("OGG", "OPUS", "audio/ogg"),
}
PCM_RATE_HZ = 24_000  # what OpenAI's clients take raw samples to be
PCM_TYPE = f"audio/pcm;rate={PCM_RATE_HZ};channels=1"


def encode_picture(picture: Tensor, kind: str = "png", quality: int | None = None) -> bytes:
    """[3, H, W] in [0, 1] → a file's bytes. quality: 0 to 100, of JPEG and WebP; None is nothing lost that is seen."""
    name, options = PICTURES[kind]
    if quality is not None and kind != "png":
        options = {"quality": quality}
    memory = io.BytesIO()
    Image.fromarray(to_bytes(picture).permute(1, 2, 0).contiguous().numpy()).save(memory, name, **options)
    return memory.getvalue()


def resize_picture(picture: Tensor, width: int, height: int) -> Tensor:
    """[3, H, W] in [0, 1] → [3, height, width]: scaled to cover the size, and what stands over is cut off evenly."""
    pixels = Image.fromarray(to_bytes(picture).permute(1, 2, 0).contiguous().numpy())
    fitted = ImageOps.fit(pixels, (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 255


def describe_resizing(own: tuple[int, int], wanted: tuple[int, int] | None) -> str:
    """What was done to a picture of one (width, height) to make it another."""
    assert wanted is not None
    said = f"the picture was drawn at {own[0]}x{own[1]} and resized to {wanted[0]}x{wanted[1]}"
    kept = min(wanted[0] / own[0], wanted[1] / own[1]) / max(wanted[0] / own[0], wanted[1] / own[1])
    return said if kept > 0.999 else f"{said}; {1 - kept:.0%} of it was cut off at two sides"


def encode_sound(sound: Tensor, rate_hz: int, kind: str = "wav") -> tuple[bytes, str]:
    """[T] in [-1, 1] → a file's bytes and its media type; "pcm" is bare 16-bit little-endian samples at 24 kHz.

    Raises ApiError 400 for a format that libsndfile lacks here.
    """
    if kind in ("pcm", "pcm16"):
        from unimodal.media.audio import resample

        return round_samples(resample(sound.detach().float().cpu(), rate_hz, PCM_RATE_HZ)).tobytes(), PCM_TYPE
    name, subtype, media_type = SOUNDS[kind]
    if subtype not in soundfile.available_subtypes(name):
        usable = ", ".join(k for k, (n, s, _) in SOUNDS.items() if s in soundfile.available_subtypes(n))
        raise ApiError(400, f"{kind} cannot be written here; choose {usable} or pcm", "unsupported_format")
    memory = io.BytesIO()
    soundfile.write(memory, round_samples(sound), rate_hz, format=name, subtype=subtype)
    return memory.getvalue(), media_type


def round_samples(sound: Tensor) -> np.ndarray:
    """[T] in [-1, 1] → little-endian int16 [T]."""
    sound = sound.detach().cpu().double().clamp(-1, 1)
    return (sound * 32768).round().clamp(-32768, 32767).to(torch.int16).numpy().astype("<i2")


def list_formats() -> dict[str, list[str]]:
    """The formats that a medium of an answer may be sent in, by medium; the first is the default."""
    formats = {name: [medium.sent_as[0].removeprefix(".")] for name, medium in MEDIA.items()}
    return {**formats, "image": list(PICTURES), "audio": [*SOUNDS, "pcm"]}


def make_data_url(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def make_medium_url(modality: str, medium: Tensor, rate: float | None) -> str:
    """A medium as a data URL: PNG, WAV, or the format that the medium's record names. rate: of samples or frames, a
    second."""
    if modality == "image":
        return make_data_url(encode_picture(medium), "image/png")
    if modality == "audio":
        return make_data_url(*encode_sound(medium, int(rate or 16_000)))
    return make_data_url(*encode_medium(modality, medium, rate))

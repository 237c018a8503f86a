"""Media as rows name them → media parts: a path inside the dataset's folder, bytes, base64, samples, frames.

    "apple.png"                                             a file below the folder
    b"…", {"bytes": b"…"}, {"bytes": "iVBORw0…"}            its bytes, or these in base64
    "data:image/png;base64,iVBORw0…", "iVBORw0…"            the same as text
    {"array": [0.0, 0.1, …], "sampling_rate": 16000}        a sound's samples
    ["1.jpg", "2.jpg"]                                      a film by its frames

A dataset is somebody else's file: what it names may only be read inside the folder its media lie in. Relative paths
start there, absolute ones must lie there, and links are followed before that is decided. Nothing is decoded and nothing
is fetched from the network here.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import soundfile

from unimodal.data.messages import MediaPart
from unimodal.files import quote_path
from unimodal.media.frames import pack_frames
from unimodal.media.kind import detect_kind
from unimodal.media.registry import MEDIA

# keys of a dict that hold a medium's bytes or name, in the order in which they are looked at
_SOURCES = ("bytes", "data", "base64", "path", "url", "file", "source")
_BASE64 = re.compile(r"[A-Za-z0-9+/_\-\s]{64,}={0,2}\s*")
_URL_SAFE = str.maketrans("-_", "+/")
_MOST_CHANNELS = 8


class MediaFolder:
    """The folder that holds the media of a dataset; None if its rows bring their media along and name no files."""

    def __init__(self, root: str | os.PathLike[str] | None) -> None:
        self.root = None if root is None else Path(root)
        self._real = None if root is None else os.path.realpath(root)

    def make_part(self, value: object, modality: str, start_s: float = 0.0, seconds: float | None = None) -> MediaPart:
        """Makes the part for a value of a media column or of a typed part. start_s, seconds: the part of the file to
        read.

        Raises ValueError for a file that is missing or lies outside the folder, for a URL, and for a value that is no
        medium.
        """
        source = self._find_source(value, modality)
        if isinstance(source, bytes):
            return MediaPart(type=modality, data=source, start_s=start_s, seconds=seconds)
        return MediaPart(type=modality, path=str(source), start_s=start_s, seconds=seconds)

    def _find_source(self, value: object, modality: str) -> bytes | Path:
        if isinstance(value, Mapping):
            if value.get("array") is not None and value.get("bytes") is None:
                return _write_samples(value["array"], value.get("sampling_rate"), modality)
            given = next((key for key in _SOURCES if value.get(key) is not None), None)
            if given is None:
                known = ", ".join(_SOURCES)
                raise ValueError(
                    f"a medium ({modality}) is a dict with {', '.join(map(str, value)) or 'nothing'}; use {known}"
                )
            inner = value[given]
            if given in ("bytes", "data", "base64") and isinstance(inner, str):
                return _decode_url(inner, modality) if inner.startswith("data:") else _decode_base64(inner, modality)
            return self._find_source(inner, modality)
        if isinstance(value, (bytes, bytearray)):
            if not value:
                raise ValueError(f"a medium ({modality}) has no bytes; export the row again")
            return bytes(value)
        if isinstance(value, (list, tuple)) and modality == "video":
            return self._join_frames(value)
        if not isinstance(value, (str, os.PathLike)):
            raise ValueError(
                f"a medium ({modality}) is given as {type(value).__name__}; use a path, bytes or a dict of these"
            )
        name = os.fspath(value)
        if name.startswith("data:"):
            return _decode_url(name, modality)
        return find_base64(name) or self.resolve(name)

    def _join_frames(self, frames: Sequence[object]) -> bytes:
        """A film whose frames are the listed pictures, in order."""
        contents: list[bytes] = []
        for number, frame in enumerate(frames, start=1):
            try:
                source = self._find_source(frame, "image")
                contents.append(source if isinstance(source, bytes) else source.read_bytes())
            except (ValueError, OSError) as error:
                raise ValueError(f"frame {number} of a film: {error}") from None
        if not contents:
            raise ValueError("a film has no frames; leave it out or give some")
        return pack_frames(contents)

    def resolve(self, name: str) -> Path:
        """The file that a row calls `name`. Raises ValueError if it is missing, elsewhere, or on the network."""
        scheme = name.partition("://")[0] if "://" in name else ""
        if scheme == "file":
            name = name.removeprefix("file://")
        elif scheme:
            raise ValueError(f"{quote_path(name)} is a URL; download the media and name files instead")
        if self.root is None or self._real is None:
            raise ValueError(f"{quote_path(name)} is a path but this dataset has no media folder; set media_root")
        if not name or "\0" in name:
            raise ValueError(f"{name!r} is not a path")
        real = os.path.realpath(self.root / name)
        if real != self._real and not real.startswith(self._real.rstrip(os.sep) + os.sep):
            raise ValueError(
                f"{quote_path(name)} lies outside the media folder {quote_path(self.root)}; move it there, "
                "or set media_root to a folder that holds it"
            )
        if not os.path.isfile(real):
            raise ValueError(f"{quote_path(name)} is not in {quote_path(self.root)}; check the path or set media_root")
        return self.root / name

    def find_file(self, name: str) -> Path | None:
        """The file that a row calls `name`, or None where the folder has none."""
        try:
            return self.resolve(name)
        except (ValueError, OSError):
            return None


def is_picture_list(value: object) -> bool:
    """Whether a value is a list of pictures, by name or as bytes: the frames of one film."""
    return isinstance(value, (list, tuple)) and bool(value) and all(map(_is_picture, value))


def _is_picture(value: object) -> bool:
    if isinstance(value, Mapping):
        value = next((value[key] for key in _SOURCES if value.get(key) is not None), None)
    if isinstance(value, str) and value.startswith("data:"):
        return value.startswith("data:image/")
    encoded = find_base64(value) if isinstance(value, str) else None
    value = value if encoded is None else encoded
    if isinstance(value, str):
        suffix = os.path.splitext(value)[1].lower()
        return suffix in MEDIA["image"].suffixes and suffix not in MEDIA["video"].suffixes
    if isinstance(value, (bytes, bytearray)):
        try:
            return detect_kind(bytes(value)) == "image"
        except ValueError:
            return False
    return False


def find_base64(text: str) -> bytes | None:
    """The bytes that a text holds in base64, if they are a known medium; None for any other text."""
    if len(text) < 64 or _BASE64.fullmatch(text) is None:
        return None
    try:
        data = base64.b64decode("".join(text.split()).translate(_URL_SAFE), validate=True)
        detect_kind(data)
    except ValueError:  # binascii.Error is one
        return None
    return data


def _write_samples(array: object, rate: object, modality: str) -> bytes:
    """Samples [T] or [channels, T] as a WAV file: floats in [-1, 1], or integers of 16 bits."""
    if modality != "audio":
        raise ValueError(f"a medium ({modality}) is given as an array; only a sound may be: use a file or bytes")
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < 1e7 or rate != int(rate):
        raise ValueError(f"a sound's sampling_rate is {rate!r}; give whole hertz, such as 16000")
    try:
        samples = np.asarray(array)
    except ValueError:
        samples = np.empty(0, object)
    if samples.ndim == 2 and samples.shape[0] <= _MOST_CHANNELS:
        samples = samples.T  # [T, channels]
    elif samples.ndim != 1:
        raise ValueError(f"a sound's array has the shape {list(samples.shape)}; give [T] or [channels, T]")
    if not samples.size or samples.dtype.kind not in "iuf":
        raise ValueError("a sound's array is no list of numbers, or empty; give its samples")
    if samples.dtype.kind in "iu" and np.abs(samples.astype(np.int64)).max() > 1:
        if samples.min() < -(2**15) or samples.max() >= 2**15:
            raise ValueError("a sound's array has integers of more than 16 bits; divide them into floats in [-1, 1]")
        samples, subtype = samples.astype(np.int16), "PCM_16"
    else:
        samples, subtype = samples.astype(np.float32), "FLOAT"
    stream = io.BytesIO()
    soundfile.write(stream, samples, int(rate), format="WAV", subtype=subtype)
    return stream.getvalue()


def _decode_url(url: str, modality: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma:
        raise ValueError(f"the data URL {url[:40]!r} of a medium ({modality}) has no data")
    return _decode_base64(body, modality) if head.endswith(";base64") else unquote_to_bytes(body)


def _decode_base64(text: str, modality: str) -> bytes:
    try:
        data = base64.b64decode("".join(text.split()).translate(_URL_SAFE), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"a medium ({modality}) is not base64 ({error})") from None
    if not data:
        raise ValueError(f"a medium ({modality}) has no bytes; export the row again")
    return data

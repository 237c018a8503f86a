"""Media of a request: URLs and base64 → bytes → what the model sees → codes.

Nothing here opens a path: a client sends data or, if that is allowed, a public URL. Files are decoded in a few threads
of their own, under the limits of the server, and encoded by the worker. The codes of a file are remembered, because
every turn of a chat sends all earlier media again.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple
from urllib.parse import unquote_to_bytes

import numpy as np
from torch import Tensor

from unimodal.media.files import RAISE_LIMIT
from unimodal.media.kind import detect_kind
from unimodal.media.limits import DEFAULT_LIMITS, MediaLimits
from unimodal.media.registry import MEDIA, ignore_note
from unimodal.pipeline import Unimodal
from unimodal.sequence.document import MEDIA_PARTS, Part
from unimodal.serve.protocol import ApiError
from unimodal.serve.remote import fetch
from unimodal.serve.settings import ServeConfig
from unimodal.serve.worker import Worker

Given = TypeVarTuple("Given")
Result = TypeVar("Result")

#: medium, hash of the file, first second, seconds
_FileKey = tuple[str, bytes, float, float | None]

REMEMBERED = 512  # files whose codes are kept
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.+-]+=[^;,]{0,100}){0,8})(;base64)?,", re.IGNORECASE)


def make_limits(config: ServeConfig) -> MediaLimits:
    """The limits on one medium of a request."""
    return MediaLimits(
        max_bytes=min(config.max_body_bytes, DEFAULT_LIMITS.max_bytes),
        max_pixels=config.max_pixels,
        max_seconds=config.max_seconds,
        max_frames=config.max_frames,
    )


def decode_base64(text: str, param: str | None) -> bytes:
    """The bytes of a base64 text. Raises ApiError 400 for a text that is not base64, or empty."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(400, f"the data is not base64 ({error})", "invalid_base64", param) from None
    if not data:
        raise ApiError(400, "the data is empty", "invalid_base64", param)
    return data


def decode_data_url(url: str, param: str | None) -> bytes:
    """The bytes of `data:image/png;base64,…`; its media type is not believed, the content decides.

    Raises ApiError 400 for a URL that cannot be read.
    """
    head = _DATA_URL.match(url[:2000])
    if head is None:
        raise ApiError(400, "the data URL cannot be read; use data:TYPE;base64,DATA", "invalid_url", param)
    rest = url[head.end() :]
    if not rest:
        raise ApiError(400, "the data URL is empty", "invalid_url", param)
    return decode_base64(rest, param) if head[3] else unquote_to_bytes(rest)


class MediaInput:
    """Reads and encodes the media of requests; `close` it at the end."""

    def __init__(self, model: Unimodal, worker: Worker, config: ServeConfig, pool: ThreadPoolExecutor) -> None:
        self.model, self.worker, self.config, self.pool = model, worker, config, pool
        self.limits = make_limits(config)
        self._fetchers = ThreadPoolExecutor(4, thread_name_prefix="unimodal-fetch")
        self._codes: OrderedDict[_FileKey, tuple[np.ndarray, tuple[str, ...]]] = OrderedDict()  # and its notes

    def close(self) -> None:
        self._fetchers.shutdown(wait=False, cancel_futures=True)

    async def read_url(self, url: object, param: str) -> bytes:
        """The bytes behind a URL. Raises ApiError for one that is not allowed or cannot be fetched."""
        if not isinstance(url, str) or not url:
            raise ApiError(400, "the URL is missing", "invalid_url", param)
        scheme = url[:20].partition(":")[0].lower()
        if scheme == "data":
            return await self._run(self.pool, decode_data_url, url, param)
        if scheme not in ("http", "https"):
            raise ApiError(400, f"URLs of the kind {scheme[:12]!r} are not read; send a data URL", "invalid_url", param)
        if not self.config.allow_remote_urls:
            message = "remote URLs are off on this server; send the file as a data URL"
            raise ApiError(400, message, "url_not_allowed", param)
        try:
            return await self._run(self._fetchers, fetch, url, self.limits.max_bytes)
        except ApiError as error:
            error.param = param
            raise

    async def decode_base64(self, text: object, param: str) -> bytes:
        """The bytes that a text spells. Raises ApiError 400 for what is no base64."""
        if not isinstance(text, str):
            raise ApiError(400, "the data is missing; give it in base64", "invalid_base64", param)
        return await self._run(self.pool, decode_base64, text, param)

    async def make_part(
        self, modality: str, data: bytes, param: str, start_s: float = 0.0, seconds: float | None = None
    ) -> Part:
        """A file's bytes, or a part of a sound or film, as a part with codes.

        A model that reads through features keeps the bytes in the part, and the worker computes the features now.
        Raises ApiError 400 or 415 for a file that cannot be used.
        """
        memory = self.model.features
        if memory is not None and self.model.is_read_by_features(modality):
            await self.read(modality, data, param, start_s=start_s, seconds=seconds)
            seen = MEDIA_PARTS[modality](data=data)
            await asyncio.wrap_future(self.worker.call(lambda: memory.find_features(seen)))
            return seen
        key = (modality, hashlib.sha256(data).digest(), start_s, seconds)
        if key not in self._codes:
            notes: list[str] = []
            medium = await self.read(modality, data, param, notes.append, start_s, seconds)
            self._codes[key] = await asyncio.wrap_future(self.worker.encode(modality, medium)), tuple(notes)
        self._codes.move_to_end(key)
        codes, told = self._codes[key]
        while len(self._codes) > REMEMBERED:
            self._codes.popitem(last=False)
        return MEDIA_PARTS[modality](codes=codes, notes=told)

    async def read(
        self,
        modality: str,
        data: bytes,
        param: str,
        tell: Callable[[str], None] = ignore_note,
        start_s: float = 0.0,
        seconds: float | None = None,
    ) -> Tensor:
        """What the model sees of a file, or of a part of it. tell: called with a sentence for everything left out.

        Raises ApiError 400 or 415 for a file that cannot be used.
        """
        if modality not in self.model.vocabulary.media:
            known = ", ".join(("text", *self.model.vocabulary.media))
            raise ApiError(400, f"this model reads no {modality}; it has {known}", "unsupported_modality", param)
        if (start_s or seconds is not None) and "t" not in MEDIA[modality].axes:
            message = f"start and seconds are for what has a duration, and a {MEDIA[modality].noun} has none"
            raise ApiError(400, message, "invalid_value", param)
        return await self._run(self.pool, self._read_now, modality, data, param, tell, start_s, seconds)

    async def find_modality(self, data: bytes, param: str) -> str:
        """The medium of a file, by its content. Raises ApiError 415 for one that holds none."""
        try:
            return await self._run(self.pool, detect_kind, data, self.limits)
        except ValueError as error:
            raise ApiError(415, _describe(error), "unsupported_media", param) from None

    def _read_now(
        self,
        modality: str,
        data: bytes,
        param: str,
        tell: Callable[[str], None],
        start_s: float,
        seconds: float | None,
    ) -> Tensor:
        coder = self.model.coder
        try:
            medium = coder.read(data, modality, start_s, seconds, tell)
            coder.check_length(medium, MEDIA_PARTS[modality](data=data))
            return medium
        except ValueError as error:
            try:
                detect_kind(data, self.limits)
            except ValueError:
                raise ApiError(415, _describe(error), "unsupported_media", param) from None
            raise ApiError(400, _describe(error), "invalid_media", param) from None

    async def _run(self, pool: ThreadPoolExecutor, work: Callable[[*Given], Result], *given: *Given) -> Result:
        return await asyncio.get_running_loop().run_in_executor(pool, work, *given)


def _describe(error: ValueError) -> str:
    """The error of a file in words for its sender, who cannot raise limits."""
    return str(error).replace("<bytes>", "the file").replace(RAISE_LIMIT, "")

"""How a server is run. Imports nothing heavy: the command line reads it before a model is loaded."""

from __future__ import annotations

import errno
import os
import socket

from pydantic import Field, field_validator

from unimodal.config import Config


class ServeConfig(Config):
    """max_batch: rows that the decoder answers at once. queue_limit: requests that may wait for a row; more get 429.

    timeout_s: of a whole request. max_body_mb: of a request's body, media in base64 included. max_parts: pictures,
    sounds and clips of one request. allow_remote_urls: whether `image_url` and the like may be http(s), of public
    addresses only. The media limits are narrower than a library's: strangers send these files.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    api_key: str | None = None
    max_batch: int = Field(default=32, ge=1)
    queue_limit: int = Field(default=64, ge=0)
    timeout_s: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    max_body_mb: float = Field(default=32.0, gt=0, allow_inf_nan=False)
    allow_remote_urls: bool = False
    max_parts: int = Field(default=32, ge=1)
    max_pixels: int = Field(default=16 * 2**20, gt=0)
    max_seconds: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    max_frames: int = Field(default=7_200, gt=0)
    #: seconds for a body, or without the client taking a byte of the answer, after which it is let go
    patience_s: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    #: a large body has one second more for so many bytes that came: dripping bytes do not hold a place for ever
    min_bytes_per_s: float = Field(default=2**16, gt=0, allow_inf_nan=False)

    @field_validator("api_key")
    @classmethod
    def _usable(cls, key: str | None) -> str | None:
        if key is not None and (not key or not key.isascii() or not key.isprintable() or key != key.strip()):
            raise ValueError("the API key must be printable ASCII without spaces around it")
        return key

    @property
    def max_body_bytes(self) -> int:
        return int(self.max_body_mb * 2**20)


KEY_VARIABLE = "UNIMODAL_API_KEY"


def key_from_environment() -> str | None:
    return os.environ.get(KEY_VARIABLE) or None


def listen(config: ServeConfig) -> socket.socket:
    """The server's socket. Raises ValueError, in one line, for an address that cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        return socket.create_server((config.host, config.port), family=family, backlog=512)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).partition(" (while")[0]
        other = "--port" if getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise ValueError(f"{config.host}:{config.port} cannot be served ({reason}); choose another {other}") from None

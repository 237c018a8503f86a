"""How a server is run. Imports nothing heavy: the command line reads it before a model is loaded."""

from __future__ import annotations

import errno
import os
import socket

from pydantic import Field, field_validator

from unimodal.config import Config


class ServeConfig(Config):
    """How a server listens and what it lets a request cost. The media limits are narrower than the library's own,
    because strangers send these files.

    host, port: where it listens; port 0 takes a free one.
    api_key: what clients must send, printable ASCII; None lets everybody in.
    max_batch: rows that the decoder answers at once.
    queue_limit: requests that may wait for a row; more are answered with 429.
    timeout_s: the longest that a whole request may take.
    max_body_mb: the largest body of a request, media in base64 included, in MiB.
    allow_remote_urls: whether media may be named by http(s) URLs, of public addresses only.
    max_parts: pictures, sounds and clips of one request.
    max_pixels, max_seconds, max_frames: of one medium.
    patience_s: seconds for a body to arrive, or for the client to take a piece of the answer; then it is let go.
    min_bytes_per_s: a large body has one second more for every so many bytes that came, so that one that drips does
        not hold its place for ever.
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
    patience_s: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    min_bytes_per_s: float = Field(default=2**16, gt=0, allow_inf_nan=False)

    @field_validator("api_key")
    @classmethod
    def _check_key(cls, key: str | None) -> str | None:
        if key is not None and (not key or not key.isascii() or not key.isprintable() or key != key.strip()):
            raise ValueError("the API key must be printable ASCII without spaces around it")
        return key

    @property
    def max_body_bytes(self) -> int:
        return int(self.max_body_mb * 2**20)


KEY_VARIABLE = "UNIMODAL_API_KEY"


def read_key() -> str | None:
    """The API key of the environment; None where it is not set or empty."""
    return os.environ.get(KEY_VARIABLE) or None


def listen(config: ServeConfig) -> socket.socket:
    """The server's socket. Raises ValueError, in one line, for an address that cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        return socket.create_server((config.host, config.port), family=family, backlog=512)
    except (OSError, OverflowError, UnicodeError) as error:
        reason, taken = str(error), False
        if isinstance(error, OSError):
            reason, taken = error.strerror or reason, error.errno in (errno.EADDRINUSE, errno.EACCES)
        reason, other = reason.partition(" (while")[0], "--port" if taken else "--host"
        raise ValueError(f"{config.host}:{config.port} cannot be served ({reason}); choose another {other}") from None

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
    allow_hosts: names under which it may be reached, beside those that no stranger can own (`access.py`); "*" is any.
    allow_origins: pages of other servers that may use it: https://chat.example.org; "*" is any.
    aliases: other names that requests may call the model by.
    max_batch: rows that the decoder answers at once.
    cache_mb: memory for the keys and values of all rows, in MiB; a request waits until what it may need fits, and one
        that never fits is refused. None: half of the memory that is free when the server begins.
    queue_limit: requests that may wait for a row; more are answered with 429.
    timeout_s: the longest that a whole request may take.
    max_body_mb: the largest body of a request, media in base64 included, in MiB.
    allow_remote_urls: whether media may be named by http(s) URLs, of public addresses only.
    max_parts: pictures, sounds and clips of one request.
    max_pixels, max_seconds, max_frames: of one medium.
    patience_s: seconds for a body to arrive, or for the client to take a piece of the answer; then it is let go.
    head_timeout_s: seconds for the head of a request to arrive, before anything is known of who sends it.
    max_connections: connections that may be open; where the system allows fewer, so many less what files need.
    grace_s: seconds that requests have to end in when the server is told to stop; then they are answered with 503.
    compress: methods of compression for conversations that name none ("divprune:0.25", or the folder of a trained one);
        empty: they are read whole.
    allow_compress: whether a request may name its own in the field `compress`.
    min_bytes_per_s: a large body has one second more for every so many bytes that came, so that one that drips does
        not hold its place for ever.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    api_key: str | None = None
    allow_hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    max_batch: int = Field(default=32, ge=1)
    cache_mb: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    queue_limit: int = Field(default=64, ge=0)
    timeout_s: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    max_body_mb: float = Field(default=32.0, gt=0, allow_inf_nan=False)
    allow_remote_urls: bool = False
    max_parts: int = Field(default=32, ge=1)
    max_pixels: int = Field(default=16 * 2**20, gt=0)
    max_seconds: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    max_frames: int = Field(default=7_200, gt=0)
    patience_s: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    head_timeout_s: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    max_connections: int = Field(default=1000, ge=1)
    grace_s: float = Field(default=10.0, ge=0, allow_inf_nan=False)
    compress: tuple[str, ...] = ()
    allow_compress: bool = False
    min_bytes_per_s: float = Field(default=2**16, gt=0, allow_inf_nan=False)

    @field_validator("host")
    @classmethod
    def _check_host(cls, host: str) -> str:
        if not host.strip():  # of a variable that was not set: the system would take every address
            raise ValueError("give an address; 0.0.0.0 is all")
        return host

    @field_validator("api_key")
    @classmethod
    def _check_key(cls, key: str | None) -> str | None:
        if key is not None and (not key or not key.isascii() or not key.isprintable() or key != key.strip()):
            raise ValueError("the API key must be printable ASCII without spaces around it")
        return key

    @field_validator("allow_hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not host or not host.isascii() or any(mark in host for mark in "/@ ") or host.count(":") == 1:
                raise ValueError(f"{host!r} is no host; give a name without scheme and port: chat.example.org")
        return hosts

    @field_validator("allow_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            scheme, mark, rest = origin.rstrip("/").partition("://")
            if origin not in ("*", "null") and not (scheme and mark and rest and "/" not in rest):
                raise ValueError(f"{origin!r} is no origin; give scheme and host: https://chat.example.org")
        return origins

    @field_validator("aliases")
    @classmethod
    def _check_aliases(cls, aliases: tuple[str, ...]) -> tuple[str, ...]:
        for alias in aliases:
            if not alias.strip() or not alias.isprintable() or len(alias) > 100:
                raise ValueError(f"{alias[:40]!r} is no name of a model; give 1 to 100 characters")
        return aliases

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

"""Open connections: how long the head of a request may take, how many there may be, and how the server ends.

`GuardedProtocol` is uvicorn's HTTP/1.1 protocol with a clock on every head and a limit on connections, both before any
key is looked at. Over the limit the oldest connection that is waiting for a head is let go; if all are at work, the new
one is only told /health and /metrics. The limit stays below what the system lets the process open, so there are always
descriptors left for files and for those who ask whether the server is well. `GuardedServer` says once in a while, and
not thousands of times, that descriptors have run out all the same; and on SIGTERM it lets what is inside end, and tells
the rest with 503 or an error event.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import socket
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

import h11
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from unimodal.serve.protocol import ApiError
from unimodal.serve.settings import ServeConfig

if TYPE_CHECKING:
    from unimodal.serve.service import Service

log = logging.getLogger("unimodal.serve")

ACCEPTED_AT_ONCE = 32  # connections that asyncio takes in one go, before any of them can be counted
KEPT_FREE = 128  # descriptors for files, for these, and for everything else
QUEUE = 512  # connections that the system lets wait to be accepted
SAID_EVERY_S = 5.0
ENDING_S = 10.0  # for what was told that the server ends to say so to its client
WELL_PATHS = ("/health", "/metrics")


def count_most_connections(config: ServeConfig) -> int:
    """The most open connections: the setting, or less if the process may not open so many."""
    try:
        import resource
    except ImportError:  # a system without this limit
        return config.max_connections
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return config.max_connections
    return max(8, min(config.max_connections, soft - KEPT_FREE))


class ConnectionLimits:
    """The limits that all connections of a server share. `open` has the connections, oldest first."""

    def __init__(self, config: ServeConfig) -> None:
        self.head_timeout_s = config.head_timeout_s
        self.most = count_most_connections(config)
        self.open: dict[GuardedProtocol, None] = {}

    def admit(self, newcomer: GuardedProtocol) -> bool:
        """Counts a new connection; False if it is one too many and no other can be dropped for it."""
        self.open[newcomer] = None
        if len(self.open) <= self.most:
            return True
        waiting = next((one for one in self.open if one.is_idle and one is not newcomer), None)
        if waiting is None:
            return False
        self.open.pop(waiting)
        waiting.let_go()
        return True


class GuardedConfig(uvicorn.Config):
    """uvicorn's settings, and the limits that its connections share."""

    def __init__(self, app: ASGIApp, limits: ConnectionLimits, grace_s: float) -> None:
        super().__init__(
            app, log_level="warning", access_log=False, server_header=False, lifespan="on", ws="none",
            http=GuardedProtocol, backlog=ACCEPTED_AT_ONCE, timeout_graceful_shutdown=int(grace_s + ENDING_S) + 1,
        )  # fmt: skip
        self.limits = limits


class GuardedProtocol(H11Protocol):
    """A connection with a clock on the head of each request."""

    config: GuardedConfig
    _clock: asyncio.TimerHandle | None = None
    _has_sent: bool = False  # whether anything of a head has come

    @property
    def waits_for_head(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    @property
    def is_idle(self) -> bool:
        """Whether it can be dropped without losing anything."""
        return self.waits_for_head and not self.transport.get_write_buffer_size()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        limits = self.config.limits
        if not limits.admit(self):
            if len(limits.open) > limits.most + ACCEPTED_AT_ONCE:
                self.let_go()
                return
            self.app = tell_that_it_is_crowded(self.app)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self.config.limits.open.pop(self, None)
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._has_sent = True
        super().data_received(data)
        self._watch_head()

    def let_go(self) -> None:
        """Closes at once, whatever is still on its way."""
        self._stop_clock()
        self.transport.abort()

    def _watch_head(self) -> None:
        """Runs a clock while a head is on its way, from the start of the connection or the first byte of the head."""
        if not self.waits_for_head:
            self._stop_clock()
            self._has_sent = False
        elif self._clock is None:
            self._clock = self.loop.call_later(self.config.limits.head_timeout_s, self._give_up)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _give_up(self) -> None:
        self._clock = None
        if not self.waits_for_head or self.transport.is_closing():
            return
        if self._has_sent and self.conn.our_state is h11.IDLE:
            error = ApiError(408, "the head of the request did not arrive in time", "timeout")
            body = json.dumps(error.make_body()).encode()
            head = f"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            self.transport.write(head.encode() + b"Connection: close\r\n\r\n" + body)
        self.transport.close()


def tell_that_it_is_crowded(app: ASGIApp) -> ASGIApp:
    """An application that only answers health and metrics, and 503 to everything else."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in WELL_PATHS:
            await app(scope, receive, send)
            return
        error = ApiError(503, "the server has as many connections as it takes; try again in a moment", "unavailable")
        body = json.dumps(error.make_body()).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"retry-after", b"1"),
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return answer


class GuardedServer(uvicorn.Server):
    """uvicorn's server over a service."""

    def __init__(self, config: GuardedConfig, service: Service) -> None:
        super().__init__(config)
        self.service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(make_quiet_handler())
        await super().startup(sockets)
        for sock in sockets or ():
            sock.listen(QUEUE)  # uvicorn has set it to what asyncio accepts in one go

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.create_task(self.service.end_requests())
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()


def make_quiet_handler(
    clock: Callable[[], float] = monotonic,
) -> Callable[[asyncio.AbstractEventLoop, dict[str, object]], None]:
    """A loop's exception handler that reports missing descriptors only once every `SAID_EVERY_S`.

    asyncio meets them thousands of times a second.
    """
    said = -float("inf")

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        nonlocal said
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
            loop.default_exception_handler(context)
        elif clock() - said >= SAID_EVERY_S:
            said = clock()
            log.error("a connection cannot be accepted (%s); let the process open more: ulimit -n", error.strerror)

    return handle

"""What stands before every endpoint: who may come in, the size of a body, and clients that stall.

Plain ASGI. A body that is too large is refused by its Content-Length before a byte of it is read; a body of unknown
length as soon as it passes the limit. So no request costs more memory than `max_body_mb`.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from time import monotonic

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unimodal.serve.access import Access
from unimodal.serve.protocol import ApiError
from unimodal.serve.settings import ServeConfig
from unimodal.serve.tickets import CLIENT

#: readable without the key: the page has to ask for the key first, and a load balancer has none
OPEN_PATHS = ("/health", "/", "/favicon.ico")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "media-src 'self' data: blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_ALWAYS = [(b"x-content-type-options", b"nosniff"), (b"content-security-policy", _POLICY.encode())]


class Gate:
    """Wraps an ASGI application."""

    def __init__(self, app: ASGIApp, config: ServeConfig) -> None:
        self.app, self.config = app, config
        self.max_body_bytes = config.max_body_bytes
        self.access = Access(config)
        self._key = None if config.api_key is None else config.api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False
        CLIENT.set(scope["client"][0] if scope.get("client") else "")
        headers = {bytes(name).lower(): bytes(value) for name, value in scope["headers"]}

        async def send_in_time(message: Message) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                more = [*_ALWAYS, *self.access.make_headers(headers)]
                if scope["path"].startswith("/static/"):  # asked for again each time, and answered by 304 if unchanged
                    more.append((b"cache-control", b"no-cache"))
                message = {**message, "headers": [*message.get("headers", []), *more]}
            async with asyncio.timeout(self.config.patience_s):  # a client that takes nothing is let go
                await send(message)

        try:
            preflight = self.access.answer_preflight(scope["method"], headers)
            if preflight is not None:
                await send_in_time({"type": "http.response.start", "status": 204, "headers": preflight})
                await send_in_time({"type": "http.response.body", "body": b""})
                return
            self.access.check(scope["method"], headers)
            self._check_key(scope["path"], headers)
            self._check_length(headers)
            await self.app(scope, self._limit_body(receive), send_in_time)
        except ApiError as error:
            if begun:
                raise
            await refuse(error, send_in_time)
        except TimeoutError:  # the client stalls: there is nobody to tell
            if not begun:
                raise

    def _check_key(self, path: str, headers: dict[bytes, bytes]) -> None:
        """Raises ApiError 401 without the key."""
        if self._key is None or path in OPEN_PATHS or path.startswith("/static/"):
            return
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._key):
            message = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`"
            raise ApiError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _check_length(self, headers: dict[bytes, bytes]) -> None:
        """Raises ApiError 413 for a Content-Length over the limit, or one that is no number."""
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self.max_body_bytes:
            raise self._make_size_error()

    def _make_size_error(self) -> ApiError:
        return ApiError(413, f"the body is over the limit of {self.config.max_body_mb:g} MB; send less", "too_large")

    def _limit_body(self, receive: Receive) -> Receive:
        """`receive` that raises ApiError: 408 for a body that is too slow, 413 for one that is too large."""
        size, whole, begun = 0, False, monotonic()

        async def receive_in_time() -> Message:
            nonlocal size, whole
            if whole:  # only a disconnection can come, in its own time
                return await receive()
            allowed_s = self.config.patience_s + size / self.config.min_bytes_per_s  # since the request began
            try:
                async with asyncio.timeout(begun + allowed_s - monotonic()):
                    message = await receive()
            except TimeoutError:
                raise ApiError(408, "the body did not arrive in time", "timeout") from None
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if size > self.max_body_bytes:
                    raise self._make_size_error()
            return message

        return receive_in_time


async def refuse(error: ApiError, send: Send) -> None:
    """Answers with an error and closes the connection, since the body may not have been read."""
    body = json.dumps(error.make_body()).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
    encoded = [(name.lower().encode(), value.encode()) for name, value in (headers | error.headers).items()]
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})

"""What stands before every endpoint: the API key, the size of a body, and clients that stall.

Plain ASGI: a body that is too large is refused by its Content-Length before a byte of it is read, and a body of unknown
length as soon as it is over, so that no request costs more memory than `max_body_mb`.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from time import monotonic
from typing import Any

from unimodal.serve.protocol import ApiError
from unimodal.serve.settings import ServeConfig

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

#: readable without the key: the page asks for it, and a balancer has none
OPEN_PATHS = ("/health", "/", "/favicon.ico")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "media-src 'self' data: blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_ALWAYS = [(b"x-content-type-options", b"nosniff"), (b"content-security-policy", _POLICY.encode())]


class Gate:
    """Wraps an ASGI application."""

    def __init__(self, app: Any, config: ServeConfig) -> None:
        self.app, self.config = app, config
        self._key = None if config.api_key is None else config.api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = False

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                more = _ALWAYS
                if scope["path"].startswith("/static/"):  # asked for again after an upgrade, and answered by 304
                    more = [*_ALWAYS, (b"cache-control", b"no-cache")]
                message = {**message, "headers": [*message.get("headers", []), *more]}
            async with asyncio.timeout(self.config.patience_s):  # a client that takes nothing is let go
                await send(message)

        try:
            headers = {bytes(name).lower(): bytes(value) for name, value in scope["headers"]}
            self._check_key(scope["path"], headers)
            self._check_length(headers)
            await self.app(scope, self._counted(receive), sending)
        except ApiError as error:
            if begun:
                raise
            await refuse(error, sending)
        except TimeoutError:  # the client stalls: there is nobody to tell
            if not begun:
                raise

    def _check_key(self, path: str, headers: dict[bytes, bytes]) -> None:
        if self._key is None or path in OPEN_PATHS or path.startswith("/static/"):
            return
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._key):
            message = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`"
            raise ApiError(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _check_length(self, headers: dict[bytes, bytes]) -> None:
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self.config.max_body_bytes:
            raise self._too_large()

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is over the limit of {self.config.max_body_mb:g} MB; send less", "too_large")

    def _counted(self, receive: Receive) -> Receive:
        size, whole, begun = 0, False, monotonic()

        async def counted() -> MutableMapping[str, Any]:
            nonlocal size, whole
            if whole:  # only a disconnection can come, in its own time
                return await receive()
            in_time = self.config.patience_s + size / self.config.min_bytes_per_s  # of all that has come so far
            try:
                async with asyncio.timeout(begun + in_time - monotonic()):
                    message = await receive()
            except TimeoutError:
                raise ApiError(408, "the body did not arrive in time", "timeout") from None
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if size > self.config.max_body_bytes:
                    raise self._too_large()
            return message

        return counted


async def refuse(error: ApiError, send: Send) -> None:
    """Answers with an error and closes the connection, since the body may not have been read."""
    body = json.dumps(error.body()).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
    encoded = [(name.lower().encode(), value.encode()) for name, value in (headers | error.headers).items()]
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})

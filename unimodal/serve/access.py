"""Which web pages may use a server that asks for no key: the checks of `Host` and `Origin`, and the answers to CORS.

A browser sends requests for any page that its user opens, to this machine and its network too. Two things tell such
requests from the user's own:

- **Host.** A stranger's name that leads to this machine (DNS rebinding) makes a page look as if it came from here. Only
  hosts are answered that no stranger can own: IP addresses, names without a dot, names under `.localhost`, `.local`,
  `.internal` and `.home.arpa`, this machine's own name, `--host`, and what `--allow-host` names.
- **Origin.** A page says where it came from. It must have come from this server (the `Host` of the request, or the
  browser's own word `Sec-Fetch-Site: same-origin` behind a proxy), or be named by `--allow-origin`.

With an API key neither is needed, since no page knows it. Programs send no `Origin` and are not held up.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from unimodal.serve.protocol import ApiError
from unimodal.serve.settings import ServeConfig

#: top-level names that are set aside for machines of one's own (RFC 6761, 6762, 8375, and ICANN's of 2024)
PRIVATE_NAMES = (".localhost", ".local", ".internal", ".home.arpa")
DEFAULT_PORTS = {"http": 80, "https": 443}
ANY = "*"

Headers = Mapping[bytes, bytes]  # lower-case names


class Access:
    """Decides by its head whether a request may come in. The settings are `allow_hosts` and `allow_origins`."""

    def __init__(self, config: ServeConfig) -> None:
        self.open = config.api_key is not None
        known = (config.host, socket.gethostname(), *config.allow_hosts)
        self.hosts = frozenset(host.lower().rstrip(".").strip("[]") for host in known)
        self.origins = frozenset(origin.lower().rstrip("/") for origin in config.allow_origins)

    def check(self, method: str, headers: Headers) -> None:
        """Raises ApiError 403 for a request that may come from a stranger's page. No browser omits the Host."""
        if self.open:
            return
        host = headers.get(b"host", b"").decode("latin-1")
        if host and ANY not in self.hosts and not self._is_known_host(host):
            message = (
                f"the host {host[:100]!r} is not this server's; start it with --allow-host {read_name(host)[:100]}"
            )
            raise ApiError(403, message, "host_not_allowed")
        origin = headers.get(b"origin")
        site = headers.get(b"sec-fetch-site", b"").decode("latin-1").lower()
        if origin is None:
            if site == "cross-site" and method not in ("GET", "HEAD"):
                raise ApiError(
                    403, "a page of another site may not send this; see --allow-origin", "origin_not_allowed"
                )
            return
        shown = origin.decode("latin-1")
        if site != "same-origin" and not self.is_allowed_origin(shown) and not _is_same(shown, host):
            message = f"pages of {shown[:100]!r} may not use this server; start it with --allow-origin {shown[:100]}"
            raise ApiError(403, message, "origin_not_allowed")

    def is_allowed_origin(self, origin: str) -> bool:
        """Whether `--allow-origin` names it."""
        return ANY in self.origins or origin.lower() in self.origins

    def make_headers(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """The headers that let a browser hand an answer to a page of an allowed origin."""
        origin = headers.get(b"origin")
        if not self.origins:
            return []
        if origin is None or not self.is_allowed_origin(origin.decode("latin-1")):
            return [(b"vary", b"Origin")]
        return [(b"access-control-allow-origin", origin), (b"vary", b"Origin")]

    def answer_preflight(self, method: str, headers: Headers) -> list[tuple[bytes, bytes]] | None:
        """The head of the answer to a browser that asks what a page may send; None for any other request.

        Raises ApiError 403 for a page whose origin is not allowed.
        """
        if method != "OPTIONS" or b"access-control-request-method" not in headers or b"origin" not in headers:
            return None
        origin = headers[b"origin"].decode("latin-1")
        if not self.is_allowed_origin(origin):
            message = f"pages of {origin[:100]!r} may not use this server; start it with --allow-origin {origin[:100]}"
            raise ApiError(403, message, "origin_not_allowed")
        wanted = headers.get(b"access-control-request-headers", b"authorization, content-type")
        answer = [
            (b"access-control-allow-methods", b"GET, HEAD, POST, OPTIONS"),
            (b"access-control-allow-headers", wanted),
            (b"access-control-max-age", b"600"),
        ]
        if b"access-control-request-private-network" in headers:
            answer.append((b"access-control-allow-private-network", b"true"))
        return answer

    def _is_known_host(self, host: str) -> bool:
        name = read_name(host)
        if name in self.hosts or (name and "." not in name and ":" not in name):
            return True
        return name.endswith(PRIVATE_NAMES) or _is_address(name)


def read_name(host: str) -> str:
    """The name or address in a `Host` header, without its port: `[::1]:8000` → `::1`; "" if there is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def _is_same(origin: str, host: str) -> bool:
    """Whether a page of this origin came from this host, even if a proxy between them ends the encryption."""
    try:
        page, server = urlsplit(origin), urlsplit(f"//{host}")
        default = DEFAULT_PORTS.get(page.scheme)
        return (
            page.hostname is not None
            and page.hostname == server.hostname
            and (page.port or default) == (server.port or default)
        )
    except ValueError:
        return False

"""Fetches a medium by URL, but only from public addresses: none of this machine or of its network.

The name of the host is resolved once, every address it has must be public, and the connection goes to the checked
address, so that a second answer of the name server (DNS rebinding) changes nothing. A redirect is checked again.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from urllib.parse import urljoin, urlsplit

from unimodal.serve.protocol import ApiError

MOST_REDIRECTS = 3
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def fetch(url: str, max_bytes: int, timeout_s: float = 15.0) -> bytes:
    """The body of an http(s) URL. Raises ApiError 400 for one that is refused or unreachable, 413 for a large body."""
    deadline = monotonic() + timeout_s
    for _ in range(MOST_REDIRECTS + 1):
        found = _get(url, max_bytes, deadline)
        if isinstance(found, bytes):
            return found
        url = urljoin(url, found)
    raise ApiError(400, f"the URL redirects more than {MOST_REDIRECTS} times", "invalid_url")


def _get(url: str, max_bytes: int, deadline: float) -> bytes | str:
    """The body, or where the answer redirects to."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise ApiError(400, "the URL cannot be read", "invalid_url") from None
    if parts.scheme not in ("http", "https") or not host or parts.username is not None:
        raise ApiError(400, "a remote URL must be http:// or https:// with a host and no password", "invalid_url")
    address = find_public_address(host, port)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection = _connect(parts.scheme, host, port, address, deadline)
        try:
            with _cut_off(connection.sock, deadline):
                if isinstance(connection.sock, ssl.SSLSocket):
                    connection.sock.do_handshake()
                connection.request("GET", path, headers={"User-Agent": "unimodal", "Accept": "*/*"})
                answer = connection.getresponse()
                body = _read_body(answer, max_bytes) if answer.status == 200 else b""
            _count_seconds_left(deadline)  # what was cut off looks like an end
            if answer.status in (301, 302, 303, 307, 308):
                return answer.getheader("Location") or ""
            if answer.status != 200:
                raise ApiError(400, f"the URL answers with status {answer.status}", "invalid_url")
            return body
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ApiError(400, f"the URL cannot be fetched ({type(error).__name__})", "invalid_url") from None


@contextmanager
def _cut_off(sock: socket.socket, deadline: float) -> Iterator[None]:
    """Closes the connection at the deadline: the timeout of a socket starts anew with every byte."""

    def cut() -> None:
        with suppress(OSError):
            socket.socket.shutdown(sock, socket.SHUT_RDWR)

    timer = threading.Timer(_count_seconds_left(deadline), cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _read_body(answer: http.client.HTTPResponse, max_bytes: int) -> bytes:
    pieces, size = [], 0
    while piece := answer.read1(65536):
        size += len(piece)
        if size > max_bytes:
            raise ApiError(413, f"the URL holds more than {max_bytes:,} bytes", "too_large")
        pieces.append(piece)
    return b"".join(pieces)


def _count_seconds_left(deadline: float) -> float:
    """Raises TimeoutError where there are none."""
    left = deadline - monotonic()
    if left <= 0:
        raise TimeoutError("too slow")
    return left


def find_public_address(host: str, port: int) -> str:
    """An address of the host, if all its addresses are public; else raises ApiError 400."""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        raise ApiError(400, "the URL's host has no address", "invalid_url") from None
    if not found or not all(is_public(address) for address in found):
        raise ApiError(400, "the URL leads to a private or local address, which is not fetched", "url_not_allowed")
    return sorted(found, key=lambda address: ":" in address)[0]


def is_public(address: str) -> bool:
    """Whether an address is one of the open internet, whatever it is wrapped in."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if int(ip) < 2**32:  # the old IPv4-compatible form, ::a.b.c.d
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def _connect(scheme: str, host: str, port: int, address: str, deadline: float) -> http.client.HTTPConnection:
    """A connection to the checked address that names the host by its own name."""
    sock = socket.create_connection((address, port), timeout=_count_seconds_left(deadline))
    try:
        if scheme == "https":
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
        connection = http.client.HTTPConnection(host, port, timeout=_count_seconds_left(deadline))
    except BaseException:
        sock.close()
        raise
    connection.sock = sock
    if scheme == "https" and port == 443:
        connection.default_port = 443  # the Host header names no port then
    return connection

"""Ports for the processes of a test, which nothing else takes between the asking and the use."""

import itertools
import os
import socket

# Below those that systems hand to outgoing connections (from 32768, or 49152 on); each worker of the suite has its own.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_CANDIDATES = itertools.cycle(range(20_000 + 500 * (_WORKER % 24), 20_500 + 500 * (_WORKER % 24)))


def free_ports(num: int) -> list[int]:
    """Ports that can be listened on; asked again, others."""
    found: list[int] = []
    for port in itertools.islice(_CANDIDATES, 500):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == num:
            return found
    raise RuntimeError(f"fewer than {num} free ports")

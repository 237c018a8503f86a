"""Open connections: heads that never end, more of them than there may be, and a server that is told to stop."""

import contextlib
import errno
import json
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import pytest

from tests.pipeline.test_speech_reading import says
from tests.serve.conftest import HTTP, image_part, png, serving, user, wav
from tests.serve.test_under_pressure import slow  # noqa: F401  # a fixture
from unimodal.serve.connections import KEPT_FREE, SAID_EVERY_S, count_most_connections, make_quiet_handler
from unimodal.serve.settings import ServeConfig

pytestmark = pytest.mark.sweep("the server")


HALF = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-Slow: "
WHOLE = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def connect(served, data=b""):
    connection = socket.create_connection(("127.0.0.1", served.port), timeout=10)
    connection.sendall(data)
    return connection


def read_all(connection):
    """What comes until the server closes."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            data += piece
    return data


def test_heads_that_do_not_end_are_closed_without_a_look_at_the_key():
    with serving(head_timeout_s=0.4, api_key="secret") as served:
        started = time.monotonic()
        silent, half = connect(served), connect(served, HALF)
        dripping, second, whole = connect(served, b"G"), connect(served, WHOLE), connect(served, WHOLE)
        answer = second.recv(65536)
        while not answer.endswith(b"}"):
            answer += second.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200")
        second.sendall(HALF)  # another head on a connection that was well
        for byte in b"ET / HTTP/1.1\r\nA: ":
            time.sleep(0.04)
            with contextlib.suppress(OSError):
                dripping.sendall(bytes([byte]))
        assert read_all(silent) == b""
        for late in (half, second, dripping):
            answer = read_all(late)
            assert answer.startswith(b"HTTP/1.1 408") and json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"]
        assert time.monotonic() - started < 5
        assert whole.recv(65536).startswith(b"HTTP/1.1 200")
        refused = connect(served, b"POST /v1/tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n")
        assert read_all(refused).startswith(b"HTTP/1.1 401")


def test_a_slow_answer_and_a_slow_body_are_not_cut_by_the_heads_clock(slow):  # noqa: F811
    with serving(head_timeout_s=0.3) as served:
        slow(served, 0.05)
        body = json.dumps(
            {"messages": [user("hi")], "modalities": ["text"], "max_tokens": 20, "temperature": 1.0}
        ).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        connection = connect(served, head.encode() + b"Content-Type: application/json\r\n\r\n" + body[:10])
        time.sleep(0.6)
        connection.sendall(body[10:])
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_over_the_limit_those_go_that_wait_and_health_is_always_answered(slow):  # noqa: F811
    with serving(max_connections=8) as served:
        limits = served.server.config.limits
        crowd = [connect(served, HALF) for _ in range(40)]
        for _ in range(3):
            assert served.get("/health").status_code == 200
        assert len(limits.open) <= 8
        assert read_all(crowd[0]) == b""  # the oldest
        for connection in crowd:
            connection.close()
        slow(served, 0.1)
        limits.most = 2
        asked = {"messages": [user("hi")], "modalities": ["text"], "max_tokens": 20, "temperature": 1.0}
        with ThreadPoolExecutor(2) as pool:
            busy = [pool.submit(served.post, "/v1/chat/completions", asked) for _ in range(2)]
            while served.service.num_inside < 2:
                time.sleep(0.01)
            assert served.get("/health").status_code == 200
            refused = served.get("/v1/models")
            assert refused.status_code == 503 and refused.json()["error"]["code"] == "unavailable"
            assert [one.result().status_code for one in busy] == [200, 200]  # nobody at work was let go
        assert served.get("/v1/models").status_code == 200


def test_without_descriptors_the_log_stays_short_and_all_are_answered_later(log_records):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serving() as served:
        assert served.get("/health").status_code == 200
        clients = [socket.socket() for _ in range(20)]
        highest = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
        fill = [socket.socket() for _ in range(highest - len(os.listdir("/proc/self/fd")) + 1)]
        highest = max(one.fileno() for one in (*clients, *fill)) + 1
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest, hard))
            for client in clients:
                client.connect(("127.0.0.1", served.port))
                client.sendall(WHOLE)
            time.sleep(1.5)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        told = [record for record in log_records if "cannot be accepted" in record.getMessage()]
        assert len(told) == 1 and "ulimit -n" in told[0].getMessage()
        assert not [record for record in log_records if record.name == "asyncio"]
        for client in clients:
            client.settimeout(10)
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
        for one in (*clients, *fill):
            one.close()


def test_the_limit_leaves_descriptors_free_and_other_errors_are_told(monkeypatch):
    resource = pytest.importorskip("resource")
    for soft, most in ((256, 256 - KEPT_FREE), (100, 8), (100_000, 1000), (resource.RLIM_INFINITY, 1000)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        assert count_most_connections(ServeConfig()) == most
    told, now = [], [0.0]
    monkeypatch.setattr("unimodal.serve.connections.log.error", lambda *message: told.append("descriptors"))
    loop = type("Loop", (), {"default_exception_handler": lambda self, context: told.append("other")})()
    handle = make_quiet_handler(lambda: now[0])
    for _ in range(1000):
        handle(loop, {"exception": OSError(errno.EMFILE, "Too many open files")})
    handle(loop, {"exception": OSError(errno.ECONNRESET, "reset")})
    now[0] += SAID_EVERY_S
    handle(loop, {"exception": OSError(errno.ENFILE, "Too many open files")})
    assert told == ["descriptors", "other", "descriptors"]


LONG_TEXT = {"modalities": ["text"], "max_tokens": 60, "temperature": 1.0}
REQUESTS = {
    "text": ("/v1/chat/completions", {"messages": [user("hi")], **LONG_TEXT}),
    "chat speech": ("/v1/chat/completions", {"messages": [user("hi")], "modalities": ["audio"]}),
    "look": ("/v1/chat/completions", {"messages": [user(image_part(png()), "?")], **LONG_TEXT}),
    "speech": ("/v1/audio/speech", {"input": "hi", "voice": "default", "response_format": "wav"}),
    "pictures": ("/v1/images/generations", {"prompt": "a cat", "n": 3}),
    "transcript": ("/v1/audio/transcriptions", None),
}


def ask(served, what, stream):
    path, body = REQUESTS[what]
    if body is None:
        return httpx.post(served.url + path, files={"file": ("a.wav", wav())}, timeout=60)
    return served.post(path, body | ({"stream": True} if stream else {}))


@pytest.mark.parametrize("grace_s", [0.2, 60.0])
def test_every_request_in_flight_ends_with_its_answer_or_is_told(slow, grace_s):  # noqa: F811
    """Told to stop in the middle of everything: with time, all get what they asked for; without, 503, or an error
    event and the end of a stream that has begun."""
    asked = [
        (what, stream)
        for what in REQUESTS
        for stream in (False, True)
        if not (stream and "/chat/" not in REQUESTS[what][0])
    ]
    with serving(says(sayings=2), grace_s=grace_s, max_batch=6) as served:
        slow(served, 0.1 if grace_s < 1 else 0.0)
        waiting = connect(served, HALF)
        with ThreadPoolExecutor(len(asked)) as pool:
            answers = [pool.submit(ask, served, *one) for one in asked]
            places = [REQUESTS[what][1].get("n", 1) if REQUESTS[what][1] else 1 for what, _ in asked]
            while served.service.num_inside < sum(
                num for num, one in zip(places, answers, strict=True) if not one.done()
            ):
                time.sleep(0.01)  # until every one is inside or answered: none is still on its way
            served.server.should_exit = True
            statuses = []
            for (what, stream), answer in zip(asked, [one.result() for one in answers], strict=True):
                statuses.append(answer.status_code)
                if stream and answer.status_code == 200:
                    assert answer.text.endswith("data: [DONE]\n\n"), what
                    statuses[-1] = 503 if '"error"' in answer.text else 200
                elif answer.status_code == 503:
                    assert answer.json()["error"]["code"] == "unavailable", what
            assert set(statuses) <= {200, 503} and statuses.count(503 if grace_s < 1 else 200) >= len(asked) / 2
        assert read_all(waiting) == b""


@pytest.mark.parametrize("what", ["speech", "transcript"])
@pytest.mark.parametrize("end", ["hang-up", "limit"])
def test_a_hang_up_and_the_time_limit_free_all_rows(slow, what, end):  # noqa: F811
    """In the middle of the drafts of a sentence, with more sentences to come, and of the search of a transcript."""
    with serving(says(sayings=3), timeout_s=30.0 if end == "hang-up" else 1.0) as served:
        slow(served, 0.2)
        worker = served.service.worker
        path, body = REQUESTS[what]
        body = {"files": {"file": ("a.wav", wav())}} if body is None else {"json": body | {"input": "hi. oh. well."}}
        if end == "hang-up":
            request = HTTP.build_request("POST", served.url + path, **body)
            head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
            connection = connect(served, f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + request.read())
            until = time.monotonic() + 20
            while not (worker.num_running and (worker.num_rows or what == "transcript")) and time.monotonic() < until:
                time.sleep(0.01)
            assert worker.num_running
            connection.close()
        else:
            assert HTTP.post(served.url + path, **body).status_code == 504
        assert served.idle(10)
        assert not worker.num_rows and not worker._waiting and not worker._composing

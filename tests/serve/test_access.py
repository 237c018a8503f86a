"""Which hosts, web pages and content types a server answers."""

import json
import socket

import httpx2 as httpx
import pytest

from tests.serve.conftest import HTTP, lively_model, serving, user
from unimodal.serve.access import Access
from unimodal.serve.gate import Gate
from unimodal.serve.protocol import ApiError
from unimodal.serve.settings import ServeConfig

OWN_HOSTS = (
    "127.0.0.1:8000", "localhost", "localhost:8000", "LocalHost:8000", "[::1]:8000", "192.168.1.20:8000", "10.0.0.5",
    "[fe80::1%25eth0]:8000", "0.0.0.0:8000", "203.0.113.9", "unimodal:8000", "host.docker.internal:8000",
    "my-mac.local:8000", "api.localhost", "localhost.:8000", socket.gethostname(),
)  # fmt: skip
STRANGE_HOSTS = (
    "evil.example.com", "evil.example.com:8000", "localhost.evil.com", "127.0.0.1.nip.io",
    "evil.com:8000@localhost.evil.com",
    "evilinternal.com", "[::1", "a.lan", "x.127.0.0.1.evil.org",
)  # fmt: skip


def check(config, method="POST", **headers):
    """The code of the refusal; None where the request comes in."""
    named = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    try:
        Access(config).check(method, named)
    except ApiError as error:
        assert error.status == 403 and "--allow-" in error.message and "\n" not in error.message
        return error.code
    return None


@pytest.mark.parametrize("host", OWN_HOSTS)
def test_hosts_that_no_stranger_owns_are_answered(host):
    assert check(ServeConfig(), host=host) is None
    assert check(ServeConfig(), "GET", host=host) is None


@pytest.mark.parametrize("host", STRANGE_HOSTS)
def test_a_strangers_name_for_this_machine_is_refused(host):
    for method in ("GET", "POST"):
        assert check(ServeConfig(), method, host=host) == "host_not_allowed"
        assert check(ServeConfig(host="0.0.0.0"), method, host=host) == "host_not_allowed"


def test_a_public_name_needs_an_option_or_a_key():
    host = "chat.example.org"
    page = {"host": host, "origin": f"https://{host}"}
    assert check(ServeConfig(), **page) == "host_not_allowed"
    for config in (
        ServeConfig(allow_hosts=(host,)), ServeConfig(host=host), ServeConfig(allow_hosts=("*",)),
        ServeConfig(allow_hosts=("Chat.Example.org.",)), ServeConfig(api_key="k"),
    ):  # fmt: skip
        assert check(config, **page) is None
    assert check(ServeConfig(allow_hosts=(host,)), host="x.chat.example.org") == "host_not_allowed"
    assert check(ServeConfig()) is None  # HTTP/1.0 without a Host: no browser's


@pytest.mark.parametrize(
    ("origin", "host", "site", "right"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000", "", True),
        ("http://[::1]:8000", "[::1]:8000", "", True),
        ("http://192.168.1.20", "192.168.1.20:80", "", True),
        ("https://box.local", "box.local", "", True),  # a proxy ends the encryption
        ("https://chat.example.org", "127.0.0.1:8000", "same-origin", True),  # a proxy that writes its own Host
        ("https://chat.example.org", "127.0.0.1:8000", "", False),
        ("https://evil.example.com", "127.0.0.1:8000", "cross-site", False),
        ("http://localhost:3000", "localhost:8000", "same-site", False),
        ("http://localhost:8000", "127.0.0.1:8000", "cross-site", False),
        ("null", "127.0.0.1:8000", "cross-site", False),
        ("", "127.0.0.1:8000", "", False),
        ("http://[", "127.0.0.1:8000", "", False),
        ("http://127.0.0.1:99999", "127.0.0.1:8000", "", False),
    ],
)
def test_a_page_must_be_this_servers_own(origin, host, site, right):
    headers = {"origin": origin, "host": host, **({"sec_fetch_site": site} if site else {})}
    assert (check(ServeConfig(), **headers) is None) is right
    assert check(ServeConfig(allow_origins=("*",)), **headers) is None
    assert check(ServeConfig(api_key="k"), **headers) is None
    if not right and origin == "https://chat.example.org":
        assert check(ServeConfig(allow_origins=("https://chat.example.org/",)), **headers) is None


def test_a_page_that_sends_no_origin_may_look_and_not_ask():
    headers = {"host": "127.0.0.1:8000", "sec_fetch_site": "cross-site"}
    assert check(ServeConfig(), "GET", **headers) is None  # somebody follows a link to the page
    assert check(ServeConfig(), "POST", **headers) == "origin_not_allowed"


@pytest.mark.parametrize(
    "wrong",
    [
        {"allow_hosts": ("http://a.org",)}, {"allow_hosts": ("a.org:80",)}, {"allow_hosts": ("",)},
        {"allow_origins": ("a.org",)}, {"allow_origins": ("https://a.org/x",)}, {"aliases": (" ",)},
    ],
)  # fmt: skip
def test_settings_that_name_no_host_or_origin(wrong):
    with pytest.raises(ValueError, match="is no"):
        ServeConfig(**wrong)


# ---- through a server


@pytest.fixture(scope="module")
def opened():
    with serving(lively_model(), allow_origins=("https://app.example.org",), aliases=("whisper-1",)) as served:
        yield served


BODY = json.dumps({"messages": [user("hello")], "modalities": ["text"], "max_tokens": 2})


def ask(served, **headers):
    headers = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return HTTP.post(f"{served.url}/v1/chat/completions", content=BODY, headers=headers)


def test_a_strangers_page_gets_nothing(opened):
    for headers in (
        {"Host": "evil.example.com"}, {"Origin": "https://evil.example.com"}, {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
    ):  # fmt: skip
        answer = ask(opened, **headers)
        assert answer.status_code == 403 and answer.json()["error"]["type"] == "permission_error"
        assert "access-control-allow-origin" not in answer.headers
    assert httpx.get(opened.url, headers={"Host": "evil.example.com"}).status_code == 403
    assert ask(opened).status_code == 200


def test_an_allowed_page_can_read_the_answer(opened):
    answer = ask(opened, Origin="https://app.example.org")
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://app.example.org"
    assert answer.headers["vary"] == "Origin"
    question = {"Origin": "https://app.example.org", "Access-Control-Request-Method": "POST"}
    question["Access-Control-Request-Headers"] = "authorization,content-type,x-stainless-os"
    preflight = httpx.options(f"{opened.url}/v1/chat/completions", headers=question)
    assert preflight.status_code == 204 and not preflight.content
    assert preflight.headers["access-control-allow-headers"] == question["Access-Control-Request-Headers"]
    assert "POST" in preflight.headers["access-control-allow-methods"]
    question["Origin"] = "https://evil.example.com"
    assert httpx.options(f"{opened.url}/v1/chat/completions", headers=question).status_code == 403
    wrong = httpx.post(f"{opened.url}/v1/nothing", headers={"Origin": "https://app.example.org"})
    assert wrong.status_code == 404 and "access-control-allow-origin" in wrong.headers  # so that a page can say why


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp"]
)
def test_a_body_must_say_that_it_is_json(opened, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    for path in ("chat/completions", "images/generations", "audio/speech", "tokenize", "detokenize"):
        if path == "tokenize" and kind == "multipart/form-data":
            continue  # which takes a file so
        answer = HTTP.post(f"{opened.url}/v1/{path}", content=BODY, headers=headers)
        message = answer.json()["error"]["message"]
        assert answer.status_code == 415 and "Content-Type: application/json" in message
        assert ("curl" in message) == (kind == "application/x-www-form-urlencoded")
    kind = "Application/JSON; charset=utf-8"
    assert httpx.post(f"{opened.url}/v1/chat/completions", content=BODY, headers={"Content-Type": kind}).is_success


def test_aliases_stand_for_the_model(opened):
    client = opened.client()
    assert [entry.id for entry in client.models.list().data] == [opened.name, "whisper-1"]
    assert client.models.retrieve("whisper-1").id == "whisper-1"
    answer = client.chat.completions.create(model="whisper-1", messages=[user("hello")], modalities=["text"])
    assert answer.model == opened.name


def test_what_is_not_served_is_named_beside_what_is(opened):
    for path in ("embeddings", "images/edits", "completions"):
        message = opened.post(f"/v1/{path}", {}).json()["error"]["message"]
        assert f"/v1/{path}" in message and "/v1/chat/completions" in message


def test_the_gate_reads_the_settings():
    assert isinstance(Gate(None, ServeConfig()).access, Access)

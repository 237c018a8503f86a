"""How a user drives the chat, and what the page asked of the server."""

import base64
import io
import json
import time

import numpy as np
from PIL import Image

DONE = ".answer:last-child:not([aria-busy])"


def ask(page, words, make=None, wait=True):
    if make is not None:
        page.check(f"input[name=make][value={make}]")
    page.fill("#question", words)
    page.press("#question", "Enter")
    if wait:
        page.wait_for_selector(DONE)


READY = "document.documentElement.dataset.ready === 'true'"


def reload(page):
    page.reload()
    until(page, READY)


def asked(page, act) -> dict:
    """The body of the chat request that `act` leads to."""
    with page.expect_request("**/v1/chat/completions") as request:
        act()
    return json.loads(request.value.post_data)


def answer_with(page, *deltas, done=True, raw=()):
    """The next answers are these deltas, whatever is asked."""
    lines = [f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}]})}\n\n" for delta in deltas]
    lines += [f"data: {json.dumps(line)}\n\n" for line in raw]
    body = "".join(lines) + ("data: [DONE]\n\n" if done else "")
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))


def refuse_with(page, status, message="", **options):
    reply = {"error": {"message": message}}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=status, json=reply, **options))


def bytes_of(url: str) -> bytes:
    return base64.b64decode(url.partition(",")[2])


def pixels_of(url: str) -> np.ndarray:
    """The picture of a data URL, uint8 [H, W, 3]."""
    return np.array(Image.open(io.BytesIO(bytes_of(url))).convert("RGB"))


def until(page, expression, timeout_s=15.0):
    """Waits for an expression to hold. Playwright's own wait evaluates strings, which the page's policy forbids."""
    end_s = time.monotonic() + timeout_s
    while not page.evaluate(expression):
        assert time.monotonic() < end_s, f"never true: {expression}"
        page.wait_for_timeout(30)

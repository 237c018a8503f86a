"""A server over the tiny model in a thread and pages of a headless Chromium; without one these tests are skipped."""

import contextlib
import os
import shutil
import threading
import time

import pytest

from tests.serve_page.asking import READY, until

CHROMIUM_VARIABLE = "CHROMIUM"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def chromium_path() -> str | None:
    """$CHROMIUM or a Chromium on the path."""
    named = os.environ.get(CHROMIUM_VARIABLE)
    return named if named else next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="session")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    pytest.importorskip("uvicorn", reason="needs the server's packages: pip install -e '.[serve]'")
    path = chromium_path()
    if path is None:
        pytest.skip("no Chromium on the path; install one or name it in $CHROMIUM")
    microphone = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *microphone])
        yield browser
        browser.close()


STRICT = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def strictly(app):
    """The application under one more content policy, the narrowest that the page works with; both hold."""

    async def wrapped(scope, receive, send):
        async def sending(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", STRICT.encode())]
            await send(message)

        await app(scope, receive, sending)

    return wrapped


@contextlib.contextmanager
def served(**settings):
    """The address of the real server over the tiny model, a few milliseconds slower a token: a page can be watched."""
    from tests.tiny_model import tiny_model
    from unimodal.serve.answer import AnswerReader
    from unimodal.serve.server import create_app, make_server
    from unimodal.serve.settings import ServeConfig, listen

    read = AnswerReader.__call__

    def slowly(self, event):
        time.sleep(0.005)
        return read(self, event)

    config = ServeConfig(port=0, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AnswerReader, "__call__", slowly)
        running, sock = make_server(create_app(tiny_model(), config)), listen(config)
        running.config.app = strictly(running.config.app)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        while not running.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}/"
        running.should_exit = True
        thread.join(15)
        sock.close()


@pytest.fixture(scope="session")
def server(browser):
    with served() as address:
        yield address


@pytest.fixture
def faults():
    """Errors of scripts and of the content policy; a test that means to make one empties the list."""
    return []


@pytest.fixture
def open_page(browser, server, faults):
    """Opens the chat; at the end no page may have had a fault."""
    contexts = []

    def open_it(address=server, init=None, **options):
        """init: a script that runs before those of the page."""
        options = {"viewport": {"width": 1100, "height": 760}, "permissions": ["microphone"], **options}
        context = browser.new_context(**options)
        contexts.append(context)
        context.grant_permissions(["clipboard-read", "clipboard-write", *options["permissions"]])
        page = context.new_page()
        if init is not None:
            page.add_init_script(init)
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        page.on("console", lambda line: faults.append(line.text) if is_fault(line) else None)
        page.goto(address)
        until(page, READY)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert faults == []


def is_fault(line) -> bool:
    return line.type in ("error", "warning") and "Failed to load resource" not in line.text


@pytest.fixture
def page(open_page):
    return open_page()

"""A server over the tiny model in a thread and pages of a headless Chromium; without one these tests are skipped."""

import os
import shutil
import socket
import threading
import time

import pytest

from tests.serve_page.asking import until

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


@pytest.fixture(scope="session")
def server(browser):
    """The address of a server over the tiny model."""
    import uvicorn

    from tests.serve_page.page_server import make_app
    from tests.tiny_model import tiny_model

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = make_app(tiny_model(), delay_s=0.005)
    running = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.02)
    yield f"http://127.0.0.1:{port}/"
    running.should_exit = True
    thread.join(10)


@pytest.fixture
def faults():
    """Errors of scripts and of the content policy; a test that means to make one empties the list."""
    return []


@pytest.fixture
def open_page(browser, server, faults):
    """Opens the chat; at the end no page may have had a fault."""
    contexts = []

    def open_it(**options):
        options = {"viewport": {"width": 1100, "height": 760}, "permissions": ["microphone"], **options}
        context = browser.new_context(**options)
        contexts.append(context)
        context.grant_permissions(["clipboard-read", "clipboard-write", *options["permissions"]])
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(dialog.message))
        page.on("console", lambda line: faults.append(line.text) if is_fault(line) else None)
        page.goto(server)
        until(page, "document.title.includes('·')")
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

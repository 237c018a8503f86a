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


PERMISSIONS = ["microphone"]
SIZE = {"width": 1100, "height": 760}


def prepare_tab(browser, tell, **options):
    """A tab of a browser of its own, that tells its faults; nothing is loaded."""
    options = {"viewport": SIZE, "permissions": PERMISSIONS, **options}
    context = browser.new_context(**options)
    context.grant_permissions(["clipboard-read", "clipboard-write", *options["permissions"]])
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.on("pageerror", lambda error: tell(str(error)))
    page.on("dialog", lambda dialog: tell(dialog.message))
    page.on("console", lambda line: tell(line.text) if is_fault(line) else None)
    return page


def load_chat(page, address):
    page.goto(address)
    until(page, READY)


@pytest.fixture
def open_page(browser, server, faults):
    """Opens the chat in a browser of its own; at the end no page may have had a fault."""
    contexts = []

    def open_it(address=server, **options):
        page = prepare_tab(browser, faults.append, **options)
        contexts.append(page.context)
        load_chat(page, address)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert faults == []


EMPTY = """() => {
    document.querySelectorAll("dialog[open]").forEach((dialog) => dialog.close());
    document.getElementById("new").click();
    for (let button; (button = document.querySelector("#attachments button")); ) button.click();
    const box = document.getElementById("question");
    box.value = "";
    box.dispatchEvent(new Event("input"));
    const make = document.querySelector("input[name=make]");
    if (make && !make.checked) make.click();
    box.focus();
}"""
IDLE = "!document.getElementById('send').hidden"


class SharedTab:
    """One tab for the tests that ask for no other: to load the chat costs more processor time than most tests in it."""

    def __init__(self, browser, address):
        self.browser, self.address = browser, address
        self.faults = []  # of the test that has the tab
        self.page = None
        self.loaded = False  # whether the chat is there, with nothing asked

    def lend(self, faults):
        self.faults = faults
        if self.page is None:
            self.page = prepare_tab(self.browser, lambda fault: self.faults.append(fault))
        if not self.loaded:
            load_chat(self.page, self.address)
            self.loaded = True
        return self.page

    def take_back(self):
        """Begins a new conversation in the chat: nothing asked, typed or attached, nothing rerouted, no other tab."""
        self._change(self._empty)

    def leave(self):
        """Leaves the chat, with nothing stored: the next test loads it."""
        if self.page is not None:
            self.loaded = False
            self._change(self._leave)

    def _change(self, act):
        """Does it to the tab, which is given up if that fails."""
        page, self.page = self.page, None
        try:
            act(page)
        except Exception:
            self.loaded = False
            page.context.close()
            raise
        self.page = page

    def _empty(self, page):
        page.unroute_all(behavior="ignoreErrors")
        for other in page.context.pages:
            if other is not page:
                other.close()
        page.emulate_media(color_scheme="null", reduced_motion="null")
        page.evaluate(EMPTY)
        until(page, IDLE)  # an answer that was written is given up
        page.mouse.move(0, 0)

    def _leave(self, page):
        page.goto(self.address + "health")  # the chat runs on no more; the tab keeps its process
        session = page.context.new_cdp_session(page)
        session.send("Storage.clearDataForOrigin", {"origin": self.address.rstrip("/"), "storageTypes": "all"})
        session.detach()


@pytest.fixture(scope="session")
def shared_tab(browser, server):
    tab = SharedTab(browser, server)
    yield tab
    if tab.page is not None:
        tab.page.context.close()


def is_fault(line) -> bool:
    return line.type in ("error", "warning") and "Failed to load resource" not in line.text


@pytest.fixture
def new_page(shared_tab):
    """Loads the chat for this test alone: it changes settings, lists conversations or replaces functions."""
    shared_tab.leave()
    yield
    shared_tab.leave()


@pytest.fixture
def page(shared_tab, faults):
    """The chat with nothing asked, in the tab of earlier tests; at the end it may have had no fault."""
    yield shared_tab.lend(faults)
    shared_tab.take_back()
    assert faults == []

"""The conversation: asking, streaming, media in answers, stopping, retrying, and what goes wrong."""

import json

import numpy as np
import pytest

from tests.serve_page.asking import DONE, answer_with, ask, asked, bytes_of, pixels_of, refuse_with, reload, until
from tests.serve_page.conftest import served
from tests.tiny_model import tiny_model
from unimodal.media.image import to_bytes

pytestmark = [pytest.mark.timeout(180), pytest.mark.sweep("the page")]


def test_enter_sends_and_shift_enter_breaks_the_line(page):
    page.focus("#question")
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert page.locator(".turn").count() == 0
    body = asked(page, lambda: page.keyboard.press("Enter"))
    assert body["messages"] == [{"role": "user", "content": "one\ntwo"}] and body["stream"] is True
    assert isinstance(body["seed"], int)
    assert body["modalities"] == ["text", "image", "audio", "video"]  # all that the page shows, by name
    assert page.locator(".user .words").inner_text() == "one\ntwo" and page.input_value("#question") == ""


def test_an_empty_question_is_not_sent(page):
    page.press("#question", "Enter")
    assert "Type a question" in page.inner_text("#status") and page.locator(".turn").count() == 0


def test_words_of_the_model_arrive(page):
    ask(page, "what is this?", "text")
    written = page.inner_text(".answer .words")
    said = tiny_model().chat("what is this?", to="text")[0].text  # at temperature 0 whatever the seed
    assert " ".join(written.split()) == " ".join(said.split())


@pytest.mark.usefixtures("new_page")
def test_a_picture_is_coarse_first_and_then_what_the_pipeline_draws(page):
    page.evaluate("""() => {
        window.seen = [];
        new MutationObserver(() => {
            const image = document.querySelector(".coarse img");
            if (image?.src && window.seen.at(-1) !== image.src) window.seen.push(image.src);
        }).observe(document.getElementById("log"), {subtree: true, childList: true, attributes: true});
    }""")
    page.click("#open-settings")
    page.fill("#seed", "5")
    page.fill("#guidance", "1.5")
    page.click("text=Done")
    ask(page, "a cat", "image")
    seen = page.evaluate("window.seen")
    assert len(seen) >= 2 and page.locator(".coarse").count() == 0
    coarse = []
    drawn = tiny_model().generate(
        "a cat", "image", seed=5, guidance=1.5, on_partial=lambda _, o: coarse.append(o.media)
    )
    expected = [to_bytes(picture).permute(1, 2, 0).numpy() for picture in (*coarse, drawn.media)]
    final = pixels_of(page.get_attribute(".answer img", "src"))
    assert np.array_equal(final, expected[-1])
    assert any(np.array_equal(pixels_of(seen[0]), picture) for picture in expected[:-1])
    assert "seed 5" in page.inner_text(".answer .facts")
    box = page.locator(".answer img").bounding_box()
    assert box["width"] == 256 and box["height"] == 256  # 64 pixels, each a square of 4
    assert page.evaluate("getComputedStyle(document.querySelector('.answer img')).imageRendering") == "pixelated"


def test_a_sound_plays_and_a_clip_moves(page):
    ask(page, "hello there", "audio")
    until(page, "document.querySelector('.answer audio').duration > 0")
    sound = bytes_of(page.get_attribute(".answer audio", "src"))
    assert sound[:4] == b"RIFF"
    page.click(".answer .sound button")
    until(page, "document.querySelector('.answer audio').currentTime > 0")
    assert page.locator(".bars i").evaluate_all("bars => new Set(bars.map((bar) => bar.style.height)).size") > 3
    ask(page, "a cat", "video")
    until(page, "document.querySelector('.answer video')?.currentTime > 0")
    page.click(".answer .action:has-text('Pause')")
    page.wait_for_selector(".answer .action:has-text('Play')")
    assert page.evaluate("document.querySelector('.answer video').paused")


BELOW = "(({scrollHeight, scrollTop, clientHeight}) => scrollHeight - scrollTop - clientHeight)(window.scroll_)"


def long_log(page):
    """An answer and much behind it, followed to its end; grow_(pixels) makes it longer."""
    page.evaluate("""() => {
      window.scroll_ = document.getElementById('scroll');
      window.grow_ = (height) => {
        const box = document.createElement('div');
        box.style.height = `${height}px`;
        document.querySelector('#log').append(box);
      };
    }""")
    ask(page, "a cat", "image")
    page.evaluate("() => grow_(2000)")
    until(page, f"{BELOW} < 3")


def test_the_page_follows_the_answer_but_not_a_reader_who_scrolled_up(page):
    page.evaluate("() => { window.scroll_ = document.getElementById('scroll'); }")
    for make in ("image", "video"):
        ask(page, "a cat", make)
        until(page, f"{BELOW} < 3")
    page.evaluate("() => { window.scroll_.scrollTop = 0; }")
    page.wait_for_timeout(100)
    page.evaluate("() => document.querySelector('#log').append(document.querySelector('.answer').cloneNode(true))")
    page.wait_for_timeout(200)
    assert page.evaluate("window.scroll_.scrollTop") == 0


def test_the_page_follows_a_log_that_grows_before_the_event_of_its_own_scrolling(page):
    long_log(page)
    page.wait_for_timeout(100)
    page.evaluate("() => { grow_(50); window.scroll_.scrollTop = window.scroll_.scrollHeight; grow_(2000); }")
    until(page, f"{BELOW} < 3")


def test_a_reader_may_leave_an_answer_that_grows(page):
    long_log(page)
    page.evaluate("() => { window.growing_ = setInterval(() => grow_(10), 20); }")
    page.mouse.move(*[page.viewport_size[side] / 2 for side in ("width", "height")])
    for _ in range(5):
        page.mouse.wheel(0, -60)
        page.wait_for_timeout(40)
    page.evaluate("() => clearInterval(window.growing_)")
    page.wait_for_timeout(100)
    page.evaluate("() => grow_(500)")
    page.wait_for_timeout(100)
    assert page.evaluate(BELOW) > 500


def test_earlier_turns_go_with_the_next_question(page):
    answer_with(page, {"content": "a "}, {"content": "cat"})
    ask(page, "what is this?")
    body = asked(page, lambda: ask(page, "and now?"))
    assert body["messages"] == [
        {"role": "user", "content": "what is this?"},
        {"role": "assistant", "content": "a cat"},
        {"role": "user", "content": "and now?"},
    ]


@pytest.mark.usefixtures("new_page")
def test_a_model_that_does_not_look_back_is_not_sent_more(page):
    said = {}
    page.route("**/v1/settings", lambda route: route.fulfill(json={**route.fetch().json(), **said}))
    answer_with(page, {"content": "a cat"})
    for turns in (0, 1):
        said["history_turns"] = turns
        reload(page)
        page.click("#new")
        assert page.locator("#alone").is_visible() == (turns == 0)
        for words in ("one", "two"):
            ask(page, words)
        body = asked(page, lambda: ask(page, "three"))
        assert [message["content"] for message in body["messages"]] == [*["two", "a cat"][: 2 * turns], "three"]


def test_escape_stops_what_was_written_stays_and_the_next_question_is_answered(page):
    ask(page, "a cat", "image", wait=False)
    page.wait_for_selector(".answer .coarse img[src]")
    with page.expect_event("requestfailed") as failed:
        page.keyboard.press("Escape")
    assert failed.value.url.endswith("/v1/chat/completions")
    page.wait_for_selector(DONE)
    assert "stopped" in page.inner_text(".answer .facts") and page.locator(".coarse img").count() == 1
    assert page.locator("#send").is_visible() and not page.locator("#stop").is_visible()
    ask(page, "hello", "text")
    assert page.locator(".answer").count() == 2 and page.locator(".error").count() == 0


def test_the_stop_button_and_no_second_question_meanwhile(page):
    ask(page, "a cat", "image", wait=False)
    page.wait_for_selector("#stop:visible")
    page.fill("#question", "another")
    page.press("#question", "Enter")
    assert page.locator(".user").count() == 1 and page.input_value("#question") == "another"
    page.click("#stop")
    page.wait_for_selector(DONE)


def test_retry_asks_the_same_with_another_seed_and_replaces_the_answer(page):
    answer_with(page, {"content": "first"})
    first = asked(page, lambda: ask(page, "hello", "text"))
    page.unroute_all()
    answer_with(page, {"content": "second"})
    again = asked(page, lambda: page.click(".retry"))
    page.wait_for_selector("text=second")
    assert again["messages"] == first["messages"] and again["seed"] != first["seed"]
    assert page.locator(".answer").count() == 1 and page.locator(".user").count() == 1


def test_copy_and_save(page):
    answer_with(page, {"content": "some <b>words</b>"})
    ask(page, "hello")
    page.click(".action:has-text('Copy')")
    page.wait_for_selector("text=Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "some <b>words</b>"
    page.unroute_all()
    ask(page, "a cat", "image")
    with page.expect_download() as download:
        page.click(".action:has-text('Save')")
    assert download.value.suggested_filename == "picture-a-cat.png"
    assert download.value.path().read_bytes() == bytes_of(page.get_attribute(".answer:last-child img", "src"))


def test_a_picture_of_an_answer_can_be_asked_about(page):
    ask(page, "a cat", "image")
    url = page.get_attribute(".answer img", "src")
    page.click(".action:has-text('Ask')")
    body = asked(page, lambda: ask(page, "what is this?"))
    assert body["messages"][-1]["content"][0] == {"type": "image_url", "image_url": {"url": url}}
    assert body["modalities"] == ["text"] and body["messages"][1]["content"][0]["type"] == "image_url"


# ---- what goes wrong


def error_of(page):
    page.wait_for_selector(DONE)
    assert page.locator(".error[role=alert]").count() == 1 and page.locator("#send").is_visible()
    return page.inner_text(".error p")


def test_a_busy_server(page):
    refuse_with(page, 429, "queue full", headers={"Retry-After": "2"})
    ask(page, "hello")
    assert "busy" in error_of(page)
    page.unroute_all()
    answer_with(page, {"content": "now"})
    page.click(".retry")
    page.wait_for_selector("text=now")
    assert page.locator(".error").count() == 0


def test_the_servers_own_words_for_a_mistake(page):
    page.set_input_files("#files", [{"name": "a.png", "mimeType": "image/png", "buffer": b"no picture at all"}])
    ask(page, "what is this?")
    assert "not a" in error_of(page) or "neither" in error_of(page) or "unknown" in error_of(page)


def test_an_error_amid_an_answer_keeps_what_came(page):
    answer_with(page, {"content": "so far"}, raw=[{"error": {"message": "out of memory"}}], done=False)
    ask(page, "hello")
    assert error_of(page) == "out of memory" and page.inner_text(".answer .words") == "so far"
    body = asked(page, lambda: ask(page, "again"))
    assert len(body["messages"]) == 1  # half an answer is not told to the model as if it were one


def test_an_answer_that_breaks_off(page):
    for deltas in ([], [{"content": "so far"}]):
        answer_with(page, *deltas, done=False)
        ask(page, "hello")
        page.wait_for_selector(".answer:last-child .error[role=alert]:has-text('broke off')")
        page.unroute_all()


def test_a_server_that_is_gone(page):
    page.route("**/v1/chat/completions", lambda route: route.abort())
    ask(page, "hello")
    assert "cannot be reached" in error_of(page)


def test_a_server_that_sends_rubbish(page):
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(content_type="text/event-stream", body="data: {not json\n\n"),
    )
    ask(page, "hello")
    assert "cannot be read" in error_of(page)


@pytest.mark.usefixtures("new_page")
def test_a_key_is_asked_for_sent_and_not_kept_beyond_the_tab(page):
    keys = []

    def guard(route):
        keys.append(route.request.headers.get("authorization"))
        if keys[-1] == "Bearer sesame":
            route.fulfill(content_type="text/event-stream", body="data: [DONE]\n\n")
        else:
            route.fulfill(status=401, json={"error": {"message": "no key"}})

    page.route("**/v1/chat/completions", guard)
    ask(page, "hello")
    assert "API key" in error_of(page)
    page.click(".error button")
    page.fill("#key", "sesame")
    page.press("#key", "Enter")
    page.click(".retry")
    page.wait_for_selector(".answer .facts")
    assert keys == [None, "Bearer sesame"]
    assert "sesame" not in page.evaluate("JSON.stringify(localStorage)")


def test_a_server_with_a_key(open_page):
    with served(api_key="sesame") as address:
        page = open_page(address)
        assert "API key" in page.inner_text("#notice p")
        page.click("#notice button:has-text('Open settings')")
        page.fill("#key", "wrong")
        page.press("#key", "Enter")
        page.wait_for_selector("#notice button:has-text('Open settings')")
        page.click("#open-settings")
        page.fill("#key", "sesame")
        page.press("#key", "Enter")
        until(page, "document.title.includes('·')")
        ask(page, "a cat", "image")
        page.click(".answer .action:has-text('Codes')")
        page.wait_for_selector(".stack img[src]")


# ---- nothing is ever read as HTML


EVIL = "<img src=x onerror=\"window.hacked=1\"><script>window.hacked=1</script><a href='javascript:hacked=1'>x</a>"


def test_text_is_never_html(page):
    urls = [
        f"data:text/html,{EVIL}",
        "javascript:window.hacked=1",
        "data:image/svg+xml;base64,PHN2Zy8+",
        "https://x.y/z.png",
    ]
    kinds = ("image_url", "audio_url", "video_url")
    parts = [{"type": kind, kind: {"url": url}} for url in urls for kind in kinds]
    strange = [{"type": EVIL, EVIL: {"url": urls[0]}}, {"type": "text", "text": EVIL}]
    partial = {"index": 0, "url": urls[0]}
    answer_with(page, {"content": EVIL}, {"partial_image": partial}, {"content_parts": [*parts, *strange]})
    page.set_input_files("#files", [{"name": f"{EVIL}.gif", "mimeType": "image/gif", "buffer": GIF}])
    ask(page, EVIL)
    assert page.inner_text(".user .words") == EVIL
    assert page.inner_text(".answer .words >> nth=0") == EVIL
    assert page.locator(".unusable").count() == len(parts)
    made = page.locator(".answer img, .answer script, .answer video, .answer audio, .answer a, .user script, .user a")
    assert made.count() == 0
    page.unroute_all()
    refuse_with(page, 400, EVIL)
    ask(page, "again")
    assert page.inner_text(".error p") == EVIL
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None


GIF = bytes.fromhex("47494638396101000100800000ff0000ffffff2c00000000010001000002024401003b")


@pytest.mark.usefixtures("new_page")
def test_the_models_name_is_text_too(page):
    media = {"image": {"noun": EVIL}, "audio": {"noun": "sound", "writes": False}}
    settings = {"model": EVIL, "modalities": ["text", *media], "media": media}
    page.route("**/v1/settings", lambda route: route.fulfill(json=settings))
    reload(page)
    assert page.locator("#model *").count() == 0 and page.evaluate("window.hacked") is None
    visible = page.locator("#make label:visible").all_inner_texts()
    assert visible == ["Auto", "Text", EVIL]  # what this model can make
    settings["modalities"] = ["text", "audio"]
    settings["media"] = {"audio": {"noun": "sound", "writes": True}}
    reload(page)  # the server takes "text or audio" for speech, so that there is no Auto
    assert page.locator("#make label:visible").all_inner_texts() == ["Text", "Sound"]


def test_an_inline_script_would_not_run(page, faults):
    blocked = page.evaluate("""() => new Promise((resolve) => {
        document.addEventListener("securitypolicyviolation", () => resolve(true));
        const script = document.createElement("script");
        script.textContent = "window.hacked = 1";
        document.body.append(script);
        setTimeout(() => resolve(false), 1000);
    })""")
    assert blocked and page.evaluate("window.hacked") is None
    assert faults and all("inline script" in fault for fault in faults)
    faults.clear()


# ---- server-sent events


def test_events_are_read_wherever_the_bytes_are_cut(page):
    texts = ["ä🍎", "b\nc", json.dumps({"x": "é"})]
    stream = ": hello\n\n" + "".join("".join(f"data: {line}\n" for line in text.split("\n")) + "\n" for text in texts)
    for ends in (stream, stream.replace("\n", "\r\n")):
        found = page.evaluate(
            """async (bytes) => {
                const {events} = await import("/static/api.js");
                const found = [];
                for (let size = 1; size <= 9; size++) {
                    const stream = new ReadableStream({start(controller) {
                        for (let at = 0; at < bytes.length; at += size)
                            controller.enqueue(new Uint8Array(bytes.slice(at, at + size)));
                        controller.close();
                    }});
                    const read = [];
                    for await (const data of events(stream)) read.push(data);
                    found.push(read);
                }
                return found;
            }""",
            list(ends.encode()),
        )
        assert found == [texts] * 9

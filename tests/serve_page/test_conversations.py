"""Conversations outlive the page: kept whole, listed, named, deleted, exported, and questions asked again."""

import json

import pytest

from tests.serve_page.asking import DONE, answer_with, ask, asked, refuse_with, reload, until

pytestmark = [pytest.mark.timeout(180), pytest.mark.sweep("the page")]


def read_log(page):
    return page.inner_text("#log")


def list_names(page):
    """The names in the list of conversations, which is left open."""
    if not page.locator("#conversations").is_visible():
        page.click("#open-conversations")
        page.locator("#conversations").wait_for()  # it is shown once it was drawn anew
    return page.locator("#conversations strong").all_inner_texts()


LARGE = """async () => {
    const chunk = JSON.stringify({choices: [{delta: {content: "yes"}}]});
    window.fetch = async () => new Response(`data: ${chunk}\\n\\ndata: [DONE]\\n\\n`);
    const picture = new OffscreenCanvas(1200, 1200);
    const noise = new ImageData(1200, 1200);
    for (let i = 0; i < noise.data.length; i++) noise.data[i] = i % 4 === 3 ? 255 : 256 * Math.random();
    picture.getContext("2d").putImageData(noise, 0, 0);
    const transfer = new DataTransfer();
    transfer.items.add(new File([await picture.convertToBlob()], "large.png", {type: "image/png"}));
    return transfer;
}"""


@pytest.mark.usefixtures("new_page")
def test_a_reload_keeps_a_large_picture(page):
    page.dispatch_event("#scroll", "drop", {"dataTransfer": page.evaluate_handle(LARGE)})
    page.wait_for_selector("#attachments li")
    ask(page, "what is it?")
    reload(page)
    length = page.evaluate("document.querySelector('.user img').src.length")
    assert length > 5 * 2**20  # more than a browser's plain storage takes
    assert page.locator(".turn").count() == 2 and page.inner_text(".answer .words") == "yes"


def test_a_reload_keeps_the_conversation(page):
    first = asked(page, lambda: ask(page, "a cat", "image"))
    picture = page.get_attribute(".answer .media img", "src")
    page.click(".answer .action:has-text('Ask')")  # the picture goes with the next question
    answer_with(page, {"content": "it is "}, {"content": "a cat"})
    second = asked(page, lambda: ask(page, "what is it?", "text"))
    before = read_log(page)
    reload(page)
    assert read_log(page) == before and not page.locator("#welcome").is_visible()
    assert page.locator(".turn").count() == 4 and page.get_attribute(".answer .media img", "src") == picture
    body = asked(page, lambda: ask(page, "and now?"))
    asked_first, drawn, asked_second, told = body["messages"][:4]
    assert asked_first == first["messages"][-1] and drawn["content"][0]["image_url"]["url"] == picture
    assert asked_second == second["messages"][-1] and told["content"] == "it is a cat"
    page.click(".answer:last-child .retry")  # a restored answer is asked for again as it was
    page.wait_for_selector(DONE)


def test_a_reload_keeps_the_question_that_is_answered(page):
    answer_with(page, {"content": "hello"})
    ask(page, "one")
    page.unroute_all()
    page.route("**/v1/chat/completions", lambda route: None)  # no answer ever
    asked(page, lambda: ask(page, "two", wait=False))
    reload(page)
    assert page.locator(".user .words").all_inner_texts() == ["one", "two"]
    assert "left before this answer" in page.inner_text(".error p")
    page.unroute_all()
    answer_with(page, {"content": "again"})
    body = asked(page, lambda: page.click(".failed .retry"))
    assert [message["content"] for message in body["messages"]] == ["one", "hello", "two"]
    page.wait_for_selector("text=again")
    assert page.locator(".error").count() == 0


def test_a_failed_question_stays_and_is_asked_again_in_its_place(page):
    refuse_with(page, 400, "too long")
    ask(page, "one")
    page.unroute_all()
    answer_with(page, {"content": "second"})
    body = asked(page, lambda: ask(page, "two"))
    assert [message["content"] for message in body["messages"]] == ["two"]  # what failed is not told to the model
    reload(page)
    assert page.inner_text(".error p") == "too long"
    page.unroute_all()
    answer_with(page, {"content": "first"})
    page.click(".failed .retry")
    page.wait_for_selector("text=first")
    assert page.locator(".answer .words").all_inner_texts() == ["first", "second"]
    assert page.locator(".error").count() == 0


@pytest.mark.usefixtures("new_page")
def test_several_conversations_are_named_opened_and_deleted(page):
    answer_with(page, {"content": "yes"})
    for words in ("the first", "the second"):
        page.click("#new")
        assert page.locator("#welcome h2").is_visible() and page.locator(".turn").count() == 0
        assert len(asked(page, lambda words=words: ask(page, words))["messages"]) == 1
    assert "the second" in page.title()
    assert list_names(page) == ["the second", "the first"]
    page.click("button[aria-label='Rename: the first']")
    page.keyboard.type("renamed")
    page.keyboard.press("Enter")
    page.wait_for_selector("#conversations strong:has-text('renamed')")
    page.click("#conversations .open:has-text('renamed')")
    until(page, "document.title.startsWith('renamed')")
    assert page.inner_text(".user .words") == "the first"
    body = asked(page, lambda: ask(page, "more"))
    assert [message["content"] for message in body["messages"]] == ["the first", "yes", "more"]
    assert list_names(page) == ["renamed", "the second"]  # the latest first
    page.click("button[aria-label='Delete: renamed']")
    page.wait_for_selector("#notice button:has-text('Undo')")
    assert page.locator("#welcome h2").is_visible() and page.locator(".turn").count() == 0
    page.click("text=Undo")
    page.wait_for_selector(".turn:nth-child(4)")
    list_names(page)
    page.click("button[aria-label='Delete: renamed']")
    page.wait_for_selector("#notice button:has-text('Undo')")
    reload(page)
    assert page.locator(".turn").count() == 0 and list_names(page) == ["the second"]


@pytest.mark.usefixtures("new_page")
def test_an_export_is_read_again(page, open_page, tmp_path):
    ask(page, "a cat", "image")
    answer_with(page, {"content": "**words**"})
    ask(page, "what is it?")
    before, picture = read_log(page), page.get_attribute(".answer .media img", "src")
    list_names(page)
    with page.expect_download() as download:
        page.click("#export-all")
    saved = tmp_path / "saved.json"
    download.value.save_as(saved)
    assert picture in saved.read_text()
    other = open_page()  # of another browser, as it were
    assert list_names(other) == []
    other.set_input_files("#import-file", saved)
    other.wait_for_selector("#conversations-told:has-text('was imported')")
    other.click("#conversations .open")
    other.wait_for_selector(".turn:nth-child(4)")
    assert read_log(other) == before and other.get_attribute(".answer .media img", "src") == picture
    list_names(other)
    content = json.loads(saved.read_text())
    content["conversations"][0]["turns"][0]["parts"][0]["image_url"]["url"] = "https://x.y/z.png"
    for text, told in (
        ("{", "no JSON"),
        ("[]", "no file of conversations"),
        (json.dumps({**content, "version": 2}), "version 2"),
        (json.dumps(content), "cannot be read"),
    ):
        saved.write_text(text)
        other.set_input_files("#import-file", saved)
        other.wait_for_selector(f"#conversations-told.bad:has-text('{told}')")
    assert list_names(other) == ["a cat"]


def test_a_question_is_changed_and_asked_again(page):
    answer_with(page, {"content": "yes"})
    for words in ("one", "two", "three"):
        ask(page, words)
    page.click(".user .action:has-text('Edit') >> nth=1")
    assert page.input_value("#question") == "two"
    page.keyboard.press("Escape")
    assert page.input_value("#question") == "" and not page.locator("#editing").is_visible()
    page.click(".user .action:has-text('Edit') >> nth=1")
    body = asked(page, lambda: ask(page, "2"))
    assert [message["content"] for message in body["messages"]] == ["one", "yes", "2"]
    assert page.locator(".user .words").all_inner_texts() == ["one", "2"]
    page.click("text=Undo")
    page.wait_for_selector("#notice p", state="detached")
    assert page.locator(".user .words").all_inner_texts() == ["one", "two", "three"]
    reload(page)
    assert page.locator(".user .words").all_inner_texts() == ["one", "two", "three"]


@pytest.mark.usefixtures("new_page")
def test_without_a_database_the_page_works_and_says_so(page):
    page.evaluate("() => Object.defineProperty(window, 'indexedDB', {value: {open() { throw new Error('no'); }}})")
    answer_with(page, {"content": "yes"})
    ask(page, "one")
    assert "does not keep conversations" in page.inner_text("#notice p")
    body = asked(page, lambda: ask(page, "two"))
    assert len(body["messages"]) == 3
    page.click("#open-conversations")
    assert "keeps no conversations" in page.inner_text("#conversations-list")


def test_what_was_left_out_of_a_file_is_told_once_beside_it(page):
    def answer(*notes):
        chunk = {"choices": [{"index": 0, "delta": {"content": "yes"}}], "notes": notes}
        page.unroute_all()
        answer_with(page, done=True, raw=[chunk])

    answer("the film's sound is left out")
    ask(page, "one")
    answer("the film's sound is left out", "9 moments of 600 s are seen")  # those of earlier turns come again
    ask(page, "two")
    notes = page.locator(".user").evaluate_all("turns => turns.map((turn) => turn.querySelector('.notes').innerText)")
    assert notes == ["the film's sound is left out", "9 moments of 600 s are seen"]


# ---- words as markdown


def test_markdown_is_shown_as_elements_and_links_only_lead_to_the_web(page):
    text = """## Title

**bold** and `a < b`, [safe](https://x.y/z), [not](javascript:window.hacked=1), ![far](https://x.y/z.png)

1. one
2. two

| a | b |
|---|--:|
| 1 | 2 |

```python
x = "<b>"
```
"""
    answer_with(page, *({"content": text[at : at + 7]} for at in range(0, len(text), 7)))
    ask(page, "hello")
    words = page.locator(".answer .words")
    assert words.locator("h2").inner_text() == "Title" and words.locator("strong").inner_text() == "bold"
    assert words.locator("p code").inner_text() == "a < b" and words.locator("ol li").count() == 2
    assert words.locator("td.to-right").inner_text() == "2" and words.locator("pre").inner_text() == 'x = "<b>"'
    links = words.locator("a").evaluate_all("links => links.map((link) => [link.href, link.rel.includes('noopener')])")
    assert links == [["https://x.y/z", True], ["https://x.y/z.png", True]] and words.locator("img").count() == 0
    assert "[not](javascript:window.hacked=1)" in words.inner_text()
    page.click("text=Copy code")
    page.wait_for_selector("text=Copied")
    assert page.evaluate("navigator.clipboard.readText()") == 'x = "<b>"'
    page.click(".answer > .actions .action:has-text('Copy')")
    until(page, "document.querySelector('.answer > .actions .action').innerText === 'Copied'")
    assert page.evaluate("navigator.clipboard.readText()") == text.strip()


# ---- pictures, and media that the page does not know


def test_a_picture_is_enlarged(page):
    ask(page, "a cat", "image")
    page.click(".answer .enlarge")
    page.wait_for_selector("#zoom img")
    width = "document.querySelector('#zoom img').clientWidth"
    until(page, f"{width} > 64")
    fitted = page.evaluate(width)
    assert fitted % 64 == 0 and page.inner_text("#zoom-title") == "picture: a cat"
    page.keyboard.press("+")
    assert page.evaluate(width) > fitted
    page.keyboard.press("0")
    assert page.evaluate(width) == fitted
    page.click("#zoom-out")
    assert page.evaluate(width) < fitted
    page.keyboard.press("Escape")
    assert not page.locator("#zoom").is_visible()
    assert page.evaluate("document.activeElement.className") == "enlarge"


@pytest.mark.usefixtures("new_page")
def test_a_medium_that_the_server_lists_is_asked_for_attached_shown_and_saved(page):
    points = {"noun": "point cloud", "type": "text/plain", "suffixes": [".points"], "writes": True}

    def settings(route):
        found = route.fetch().json()
        route.fulfill(json={**found, "modalities": ["text", "points"], "media": {"points": points}})

    page.route("**/v1/settings", settings)
    reload(page)
    assert page.locator("#make label").all_inner_texts() == ["Auto", "Text", "Point cloud"]
    page.set_input_files("#files", [{"name": "a.points", "mimeType": "", "buffer": b"points\n1 2\n"}])
    page.wait_for_selector("#attachments li")
    url = "data:text/plain;base64,cG9pbnRzCjMgNAo="
    bad = "data:text/html;base64,cG9pbnRzCjMgNAo="
    answer_with(page, {"content_parts": [{"type": "points_url", "points_url": {"url": one}} for one in (url, bad)]})
    body = asked(page, lambda: ask(page, "more like it", "points"))
    assert body["modalities"] == ["points"] and body["messages"][0]["content"][0]["type"] == "points_url"
    assert page.locator(".answer .unusable").count() == 1
    with page.expect_download() as download:
        page.click(".answer .action:has-text('Save')")
    assert download.value.suggested_filename == "point-cloud-more-like-it.points"
    assert download.value.path().read_bytes() == b"points\n3 4\n"


def test_all_that_is_seen_is_in_a_landmark(page):
    """axe-core's rule `region`, by hand: a reader who jumps from landmark to landmark meets everything."""
    ask(page, "a cat", "image")
    outside = page.evaluate("""() => [...document.querySelectorAll("body *")].filter((element) => {
        const words = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        const seen = element.checkVisibility() && (words || element.matches("button, input, textarea, img"));
        return seen && !element.closest("header, main, form[aria-label], dialog, .skip, .hidden");
    }).map((element) => element.outerHTML.slice(0, 80))""")
    assert outside == []

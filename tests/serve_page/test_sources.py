"""What an answer came from, shown on the media below it."""

import json

import pytest
import torch

from tests.serve_page.asking import answer_with, ask, pixels_of
from unimodal.media.audio import save_audio
from unimodal.media.image import save_image

pytestmark = [pytest.mark.timeout(180), pytest.mark.sweep("the page")]
BUTTON = ".answer .action:has-text('Sources')"


@pytest.fixture
def files(tmp_path):
    generator = torch.Generator().manual_seed(3)
    save_image(torch.rand(3, 24, 24, generator=generator), tmp_path / "picture.png")
    save_audio(torch.rand(8_000, generator=generator) - 0.5, tmp_path / "noise.wav", 16_000)
    return [tmp_path / "picture.png", tmp_path / "noise.wav"]


def attach(page, files):
    page.set_input_files("#files", files)
    page.wait_for_selector(f"#attachments li:nth-child({len(files)})")
    answer_with(page, {"content": "a red apple"})
    ask(page, "what is this?", "text")


def test_the_real_server_tells_where_the_words_came_from(page, files):
    attach(page, files)
    with page.expect_request("**/v1/attributions") as request:
        page.click(BUTTON)
    body = json.loads(request.value.post_data)
    assert [message["role"] for message in body["messages"]] == ["user", "assistant"]
    assert body["messages"][1]["content"] == "a red apple"
    page.wait_for_selector(".sources figure:nth-child(2) img[src]")
    captions = page.locator(".sources figcaption").all_inner_texts()
    assert [caption.partition(" % from the ")[2] for caption in captions] == ["picture", "sound"]
    rest = page.inner_text(".sources > p")
    shares = [int(text.split(" %")[0]) for text in (*captions, rest)]
    assert rest.endswith("% from words and marks") and abs(sum(shares) - 100) <= 2
    shown = pixels_of(page.get_attribute(".sources figure img", "src"))
    assert shown.shape == (64, 64, 3) and (shown[..., 0].astype(int) - shown[..., 1]).max() > 60  # red somewhere
    page.click(BUTTON)
    assert not page.locator(".sources").is_visible()
    assert page.get_attribute(BUTTON, "aria-expanded") == "false"


def test_an_error_is_told_and_the_next_opening_tries_again(page, files):
    attach(page, files[:1])
    reply = {"error": {"message": "conversation and answer are too long"}}
    page.route("**/v1/attributions", lambda route: route.fulfill(status=400, json=reply))
    page.click(BUTTON)
    page.wait_for_selector(".sources .bad")
    assert page.inner_text(".sources .bad") == "conversation and answer are too long"
    url = "https://elsewhere.example/a.png"  # only data that is shown as it is
    media = [{"message": 0, "modality": "image", "share": 0.614, "url": url}]
    page.unroute("**/v1/attributions")
    page.route("**/v1/attributions", lambda route: route.fulfill(json={"media": media}))
    page.click(BUTTON)
    page.click(BUTTON)
    page.wait_for_selector(".sources p:has-text('61 % from the picture')")
    assert page.locator(".sources img").count() == 0 and page.locator(".sources .bad").count() == 0


def test_an_answer_without_media_or_words_has_none(page):
    answer_with(page, {"content": "hello"})
    ask(page, "hello", "text")
    assert page.locator(BUTTON).count() == 0
    page.unroute("**/v1/chat/completions")
    ask(page, "a red apple", "image")
    assert page.locator(f".answer:last-child {BUTTON.removeprefix('.answer ')}").count() == 0

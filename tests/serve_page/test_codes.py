"""The codes of a medium: which number stands where, what a prefix decodes to, what one code changes."""

import json

import numpy as np
import pytest
import torch

from tests.serve_page.asking import answer_with, ask, pixels_of, until
from tests.tiny_model import tiny_model
from unimodal.media.image import save_image, to_bytes
from unimodal.sequence.document import Image

pytestmark = [pytest.mark.timeout(180), pytest.mark.sweep("the page")]


@pytest.fixture
def picture(tmp_path):
    save_image(torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(3)), tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def view(page, picture):
    """The page with the codes of an attached picture open, and those codes."""
    page.set_input_files("#files", picture)
    page.wait_for_selector("#attachments li")
    answer_with(page, {"content": "so"})
    ask(page, "what is this?", "text")
    page.click(".user .action:has-text('Codes')")
    page.wait_for_selector("#codes .cell")
    page.wait_for_selector("#codes .stack img[src]")
    return page, tiny_model().tokenize(picture).codes


def decoded(codes, prefix):
    media = tiny_model().coder.decode_part(Image(codes=codes[:prefix])).media
    return to_bytes(media).permute(1, 2, 0).numpy()


def shows(page, expected):
    for _ in range(60):
        if np.array_equal(pixels_of(page.get_attribute("#codes .stack img", "src")), expected):
            return True
        page.wait_for_timeout(50)
    return False


def test_every_code_is_shown_in_its_segment(view):
    page, codes = view
    assert [int(text) for text in page.locator(".cell").all_inner_texts()] == codes.tolist()
    segments = tiny_model().coder.get_tokenizer("image").segments
    counts = page.locator(".cells").evaluate_all("blocks => blocks.map((block) => block.childElementCount)")
    assert counts == [count for _, count in segments]
    names = page.locator(".segment strong").all_inner_texts()
    assert names == [name for name, _ in segments]
    hues = page.locator(".cell").evaluate_all("cells => cells.map((cell) => cell.style.getPropertyValue('--hue'))")
    same = {(code, hue) for code, hue in zip(codes.tolist()[4:], hues[4:], strict=True)}
    assert len(same) == len({code for code, _ in same})  # one number has one colour


def test_the_slider_shows_what_a_prefix_decodes_to(view):
    page, codes = view
    assert shows(page, decoded(codes, 64))
    page.focus("#prefix")
    page.keyboard.press("Home")
    assert page.input_value("#prefix") == "1" and shows(page, decoded(codes, 1))
    page.keyboard.press("ArrowRight")
    assert shows(page, decoded(codes, 2)) and page.inner_text("#prefix-value") == "2 / 64"
    assert page.locator(".cell.beyond").count() == 62
    page.click(".cell >> nth=9")
    assert shows(page, decoded(codes, 10)) and page.input_value("#prefix") == "10"
    assert page.get_attribute(".cell >> nth=9", "aria-selected") == "true"


def test_a_quick_hand_ends_at_the_last_wish(view):
    page, codes = view
    page.evaluate("""() => {
        const slider = document.getElementById("prefix");
        for (let n = 1; n <= 40; n++) {
            slider.value = n;
            slider.dispatchEvent(new Event("input"));
        }
    }""")
    assert shows(page, decoded(codes, 40))


def test_pointing_at_a_code_names_it_and_marks_what_it_changes(view):
    page, codes = view
    page.hover(".cell >> nth=3")
    assert f"Code 4 of 64 · look · number {codes[3]}" in page.inner_text("#codes-hover")
    page.wait_for_selector(".stack.marked")
    alpha = np.array(
        page.evaluate("""() => {
            const mark = document.querySelector(".mark");
            const data = mark.getContext("2d").getImageData(0, 0, mark.width, mark.height).data;
            return [...data].filter((_, i) => i % 4 === 3);
        }""")
    ).reshape(64, 64)
    change = np.abs(decoded(codes, 4).astype(int) - decoded(codes, 3).astype(int)).max(axis=2)
    assert alpha.argmax() == change.argmax() or alpha.flat[change.argmax()] == alpha.max()
    assert np.corrcoef(alpha.ravel(), change.ravel())[0, 1] > 0.9
    page.mouse.move(2, 2)
    page.wait_for_selector(".stack:not(.marked)")


def test_the_codes_by_keyboard(view):
    page, codes = view
    page.focus(".cell >> nth=0")
    page.keyboard.press("ArrowRight")
    assert "Code 2 of 64" in page.inner_text("#codes-hover")
    page.keyboard.press("End")
    assert "Code 64 of 64" in page.inner_text("#codes-hover")
    page.keyboard.press("ArrowUp")
    columns = page.evaluate(
        "getComputedStyle(document.querySelectorAll('.cells')[2]).gridTemplateColumns.split(' ').length"
    )
    assert f"Code {64 - columns} of 64" in page.inner_text("#codes-hover")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert shows(page, decoded(codes, 2))
    assert page.locator(".cell[tabindex='0']").count() == 1  # one stop of the Tab key
    page.keyboard.press("Escape")
    assert not page.locator("#codes").is_visible()


def test_playing_runs_to_the_end_and_can_be_paused(view):
    page, codes = view
    page.click("#play")
    until(page, "Number(document.getElementById('prefix').value) > 2")
    page.click("#play")
    stopped = int(page.input_value("#prefix"))
    page.wait_for_timeout(400)
    assert abs(int(page.input_value("#prefix")) - stopped) <= 1 < 64 - stopped
    page.focus("#prefix")
    page.evaluate(
        "() => { const p = document.getElementById('prefix'); p.value = 60; p.dispatchEvent(new Event('input')); }"
    )
    page.click("#play")
    until(page, "document.getElementById('prefix').value === '64'")
    page.wait_for_selector("#play[aria-label^=Play]")


def test_codes_that_form_a_grid_stand_in_it_and_point_to_their_place(page, picture):
    """As a raster tokenizer's are: 4 rows of 6 here."""
    codes = list(range(24))
    reply = {"modality": "image", "codes": codes, "ordered": False, "groups": 1}
    segment = {"name": "image", "start": 0, "count": 24, "grid": [1, 4, 6]}
    page.route("**/v1/tokenize", lambda route: route.fulfill(json={**reply, "segments": [segment]}))
    asked = []

    def detokenize(route):
        asked.append(json.loads(route.request.post_data))
        real = tiny_model().tokenize(picture).codes.tolist()
        route.continue_(post_data=json.dumps({"modality": "image", "codes": real, "prefix": None}))

    page.route("**/v1/detokenize", detokenize)
    ask(page, "a cat", "image")
    page.click(".answer .action:has-text('Codes')")
    page.wait_for_selector(".stack img[src]")
    assert asked == [{"modality": "image", "codes": codes, "prefix": None}]
    assert not page.locator("#codes-prefix").is_visible()  # no prefix where codes have no order
    tops = page.locator(".cell").evaluate_all("cells => cells.map((cell) => cell.offsetTop)")
    assert len(set(tops)) == 4 and len(set(tops[6:12])) == 1
    page.hover(".cell >> nth=9")
    assert "row 2, column 4" in page.inner_text("#codes-hover")
    marked = page.evaluate("""() => {
        const mark = document.querySelector(".mark");
        const data = mark.getContext("2d").getImageData(0, 0, mark.width, mark.height).data;
        const found = [];
        for (let i = 0; i < data.length / 4; i++)
            if (data[4 * i + 3]) found.push([(i % mark.width) / mark.width, Math.floor(i / mark.width) / mark.height]);
        const side = (k) => [Math.min(...found.map((p) => p[k])), Math.max(...found.map((p) => p[k]))];
        return [side(0), side(1)];
    }""")
    (left, right), (top, bottom) = marked
    assert 3 / 6 <= left < right < 4 / 6 and 1 / 4 <= top < bottom < 2 / 4


def test_groups_of_codes_and_long_sequences(page):
    codes = [i % 900 for i in range(2 * 600)]
    reply = {"modality": "image", "codes": codes, "ordered": False, "groups": 2}
    segment = {"name": "image", "start": 0, "count": 600, "grid": None}
    page.route("**/v1/tokenize", lambda route: route.fulfill(json={**reply, "segments": [segment]}))
    page.route("**/v1/detokenize", lambda route: route.fulfill(status=400, json={"error": {"message": "no such code"}}))
    ask(page, "a cat", "image")
    page.click(".answer .action:has-text('Codes')")
    page.wait_for_selector(".cell")
    assert page.locator(".cell").count() == 600 and "600 codes" in page.inner_text("#codes-summary")
    page.wait_for_selector(".readout.bad")
    assert page.inner_text("#codes-hover") == "no such code"
    page.hover(".cell >> nth=7")
    assert "number 14 15" in page.inner_text("#codes-hover")


def test_sounds_have_codes_too_and_an_error_is_told(page):
    ask(page, "hello there", "audio")
    page.click(".answer .action:has-text('Codes')")
    page.wait_for_selector(".cell")
    assert page.locator("#codes .sound").count() == 1 and not page.locator("#codes-prefix").is_visible()
    page.keyboard.press("Escape")
    page.route("**/v1/tokenize", lambda route: route.fulfill(status=429, json={"error": {"message": "busy"}}))
    page.click(".answer .action:has-text('Codes')")
    page.wait_for_selector(".readout.bad")
    assert "busy" in page.inner_text("#codes-hover") and page.locator(".cell").count() == 0

"""What goes with a question: picked, dropped, pasted and recorded media, as the server gets them."""

import base64
import io
import math

import numpy as np
import pytest
import soundfile
import torch

from tests.serve_page.asking import answer_with, ask, asked, bytes_of
from unimodal.media.audio import save_audio
from unimodal.media.image import save_image
from unimodal.media.video import save_video

pytestmark = [pytest.mark.timeout(180), pytest.mark.sweep("the page")]


@pytest.fixture
def files(tmp_path):
    """A picture, a moving and a still GIF, a clip, and a stereo sound at 44.1 kHz with a tone of 440 Hz."""
    generator = torch.Generator().manual_seed(0)
    save_image(torch.rand(3, 20, 30, generator=generator), tmp_path / "picture.png")
    clip = torch.rand(6, 3, 32, 32, generator=generator)
    for name in ("clip.gif", "clip.webp", "clip.mp4"):
        save_video(clip, tmp_path / name, 8)
    save_video(clip[:1], tmp_path / "still.gif", 8)
    tone = 0.5 * torch.sin(torch.arange(44_100) * 2 * math.pi * 440 / 44_100).numpy()
    soundfile.write(tmp_path / "tone.flac", np.stack([tone, tone * 0.5], axis=1), 44_100)
    save_audio(torch.zeros(1_600), tmp_path / "silence.wav", 16_000)
    return tmp_path


def sent_parts(page):
    answer_with(page, {"content": "so"})
    return asked(page, lambda: ask(page, "what is this?"))["messages"][-1]["content"]


def test_pictures_and_clips_are_sent_as_they_are(page, files):
    names = ["picture.png", "still.gif", "clip.gif", "clip.webp", "clip.mp4"]
    page.set_input_files("#files", [files / name for name in names])
    page.wait_for_selector("#attachments li:nth-child(5)")
    parts = sent_parts(page)
    kinds = ["image_url", "image_url", "video_url", "video_url", "video_url", "text"]  # what moves is a clip
    assert [part["type"] for part in parts] == kinds
    for name, part in zip(names, parts, strict=False):
        assert bytes_of(part[part["type"]]["url"]) == (files / name).read_bytes(), name
    assert parts[-1]["text"] == "what is this?" and page.locator("#attachments li").count() == 0
    assert page.locator(".user .media").count() == 5


def test_any_sound_is_sent_as_mono_wav_of_16_khz(page, files):
    page.set_input_files("#files", files / "tone.flac")
    page.wait_for_selector("#attachments li")
    sound = sent_parts(page)[0]
    assert sound["type"] == "input_audio" and sound["input_audio"]["format"] == "wav"
    samples, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(sound["input_audio"]["data"])))
    assert rate_hz == 16_000 and samples.ndim == 1 and abs(len(samples) - 16_000) < 20
    spectrum = np.abs(np.fft.rfft(samples[:16_000]))
    assert abs(spectrum.argmax() * 16_000 / len(samples[:16_000]) - 440) < 2
    assert 0.36 < np.abs(samples).max() < 0.40  # the mean of both channels


TRANSFER = """async ([url, name, type]) => {
    const bytes = Uint8Array.from(atob(url), (letter) => letter.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name, {type}));
    return transfer;
}"""


def transfer_of(page, path, kind):
    return page.evaluate_handle(TRANSFER, [base64.b64encode(path.read_bytes()).decode(), path.name, kind])


def test_a_dropped_file(page, files):
    transfer = transfer_of(page, files / "picture.png", "image/png")
    page.dispatch_event("#scroll", "dragenter", {"dataTransfer": transfer})
    assert page.locator("#drop").is_visible()
    page.dispatch_event("#scroll", "drop", {"dataTransfer": transfer})
    assert not page.locator("#drop").is_visible()
    page.wait_for_selector("#attachments img")
    assert bytes_of(sent_parts(page)[0]["image_url"]["url"]) == (files / "picture.png").read_bytes()


def test_a_pasted_picture_and_pasted_words(page, files):
    transfer = transfer_of(page, files / "picture.png", "image/png")
    page.evaluate(
        """(data) => document.getElementById("question").dispatchEvent(
            new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true}))""",
        transfer,
    )
    page.wait_for_selector("#attachments img")
    page.evaluate("navigator.clipboard.writeText('<i>words</i>')")
    page.focus("#question")
    page.keyboard.press("Control+V")
    assert page.input_value("#question") == "<i>words</i>" and page.locator("#attachments li").count() == 1


def test_an_attachment_can_be_removed(page, files):
    page.set_input_files("#files", [files / "picture.png", files / "silence.wav"])
    page.wait_for_selector("#attachments li:nth-child(2)")
    page.click("button[aria-label='Remove picture.png']")
    assert [part["type"] for part in sent_parts(page)] == ["input_audio", "text"]


def test_media_alone_are_a_question(page, files):
    page.set_input_files("#files", files / "picture.png")
    page.wait_for_selector("#attachments li")
    body = asked(page, lambda: page.click("#send"))
    assert [part["type"] for part in body["messages"][0]["content"]] == ["image_url"]


NOT_SENT = [
    ("a.pdf", "application/pdf", b"%PDF", "nothing that this model reads: picture, sound, film"),
    ("b.png", "image/png", b"", "is empty"),
    ("c.wav", "audio/wav", b"RIFF nothing", "cannot be decoded"),
    ("d.svg", "image/svg+xml", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no format that is read"),
]


def test_files_that_cannot_be_sent(page):
    for name, kind, content, told in NOT_SENT:
        page.set_input_files("#files", [{"name": name, "mimeType": kind, "buffer": content}])
        page.wait_for_selector(f"#notice p:has-text('{name}')")
        assert told in page.inner_text(f"#notice p:has-text('{name}')")
        assert page.locator("#attachments li").count() == 0
    page.set_input_files("#files", [{"name": "e.gif", "mimeType": "image/gif", "buffer": b"GIF89a"}])
    page.wait_for_selector("#attachments li")  # broken, but the server is to say so


def test_at_most_eight_media(page, files):
    page.set_input_files("#files", [files / "picture.png"] * 9)
    page.wait_for_selector("#notice p")
    assert page.locator("#attachments li").count() == 8 and "At most 8" in page.inner_text("#notice p")


def test_a_recording_is_a_wav_of_its_length(page):
    page.click("#record")
    page.wait_for_selector("#record[aria-pressed=true]")
    page.wait_for_timeout(1_000)
    assert "Recording" in page.inner_text("#status")
    page.click("#record")
    page.wait_for_selector("#attachments li")
    assert page.get_attribute("#record", "aria-pressed") == "false"
    sound = sent_parts(page)[0]["input_audio"]
    samples, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(sound["data"])))
    assert rate_hz == 16_000 and samples.ndim == 1 and 0.6 < len(samples) / rate_hz < 2.5
    assert np.abs(samples).max() > 0.01  # Chromium's stand-in for a microphone beeps


def test_a_recording_ends_at_the_models_limit_and_escape_discards(page):
    page.click("#record")
    page.wait_for_selector("#attachments li", timeout=15_000)  # the tiny model hears 2 s
    assert page.get_attribute("#record", "aria-pressed") == "false"
    page.click("#record")
    page.wait_for_selector("#record[aria-pressed=true]")
    page.keyboard.press("Escape")
    page.wait_for_selector("#record[aria-pressed=false]")
    page.wait_for_timeout(300)
    assert page.locator("#attachments li").count() == 1


@pytest.mark.usefixtures("new_page")
def test_a_microphone_that_may_not_be_used(page):
    page.evaluate(
        "() => { navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', 'NotAllowedError')); }"
    )
    page.click("#record")
    page.wait_for_selector("#notice p")
    assert "may not be used" in page.inner_text("#notice p")

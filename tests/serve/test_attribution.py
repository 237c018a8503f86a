"""Over HTTP: what of an answer came from which medium of the conversation."""

import pytest

from tests.serve.conftest import data_url, gif, image_part, opened, pixels, png, serving, user, wav
from unimodal.evaluation.inspection.opened import OpenedModel
from unimodal.evaluation.inspection.sources import find_sources
from unimodal.sequence.document import Document, Image, Text, Turn

SAID = {"role": "assistant", "content": "a red apple"}


@pytest.fixture(scope="module")
def server():
    with serving() as served:
        yield served


def test_the_shares_are_those_of_the_model(server, model):
    answer = server.post("/v1/attributions", {"messages": [user(image_part(png()), "what is this?"), SAID]})
    found = answer.json()
    assert answer.status_code == 200 and found["object"] == "attribution" and found["method"] == "gradient"
    own = OpenedModel("tiny", model.decoder, model.template.text, model)
    part = model.coder.encode_part(Image(data=png()))
    [expected] = find_sources(own, Document([Turn("user", [part, Text("what is this?")])]), "a red apple")
    [medium] = found["media"]
    assert (medium["message"], medium["modality"]) == (0, "image")
    assert medium["share"] == pytest.approx(expected.share, abs=2e-4)
    assert (pixels(opened(medium["url"])).permute(1, 2, 0).numpy() == expected.picture).all()


def test_every_medium_of_a_conversation_is_named_by_its_message(server):
    sound = {"type": "audio_url", "audio_url": {"url": data_url(wav(), "audio/wav")}}
    clip = {"type": "video_url", "video_url": {"url": data_url(gif(), "image/gif")}}
    messages = [
        {"role": "system", "content": "be short"}, user(image_part(png()), "what?"), SAID, user(clip, "and?"), SAID,
        user(sound, image_part(png(1))), SAID,
    ]  # fmt: skip
    media = server.post("/v1/attributions", {"messages": messages}).json()["media"]
    places = [(medium["message"], medium["modality"]) for medium in media]
    every = [(1, "image"), (3, "video"), (5, "audio"), (5, "image")]
    assert places == every[-len(places) :] and places[-2:] == every[-2:]
    assert 0 < sum(medium["share"] for medium in media) <= 1
    assert all(opened(medium["url"])[:4] == b"\x89PNG" for medium in media)


def test_words_alone_have_no_media(server):
    messages = [{"role": "user", "content": "hello"}, SAID]
    assert server.post("/v1/attributions", {"messages": messages}).json()["media"] == []


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([SAID], "messages"),
        ([{"role": "user", "content": "what?"}, {"role": "user", "content": "so"}], "messages[1]"),
        ([{"role": "user", "content": "what?"}, {"role": "assistant", "content": " "}], "messages[1]"),
        ([SAID, SAID], "messages[0]"),
        ([{"role": "user", "content": "word " * 3000}, SAID], "messages"),
    ],
)
def test_what_cannot_be_looked_into_is_told_in_one_line(server, messages, field):
    answer = server.post("/v1/attributions", {"messages": messages})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == field and "\n" not in error["message"]


def test_a_picture_is_no_answer_in_words(server):
    shown = {"role": "assistant", "content": [image_part(png())]}
    answer = server.post("/v1/attributions", {"messages": [{"role": "user", "content": "draw"}, shown]})
    assert answer.status_code == 400 and "in words alone" in answer.json()["error"]["message"]
    assert server.post("/v1/attributions", {"messages": [SAID, SAID], "temperature": 1}).status_code == 400

"""What an answer came from, for those who show it on the media."""

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from tests.tiny_model import tiny_model
from unimodal.evaluation.inspection import make_report
from unimodal.evaluation.inspection.media_maps import MediaMap, map_scores, paint_map
from unimodal.evaluation.inspection.opened import OpenedModel
from unimodal.evaluation.inspection.report import InspectionInput
from unimodal.evaluation.inspection.sources import find_sources
from unimodal.sequence.document import Document, Image, Text, Turn


@pytest.fixture(scope="module")
def opened():
    model = tiny_model()
    return OpenedModel("tiny", model.decoder, model.template.text, model)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "a.png"
    Pillow.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    return Image(path=path)


def test_shares_are_those_of_the_report(opened, picture):
    coded = opened.loaded.coder.encode_part(picture)
    asked = Document([Turn("user", [coded, Text("what is this?")])])
    settings = {"draws": 1, "least_steps": 1, "most_steps": 1}
    given = InspectionInput(prompt="what is this?", files=[picture], answer="a cat", settings=settings)
    report = make_report("attribution", opened, given)
    read = opened.read_turns(asked, "a cat")
    assert torch.equal(read.ids, opened.read_prompt("what is this?", [picture], "a cat", None).ids)
    [source] = find_sources(opened, asked, " a cat ")
    assert source.modality == "image"
    assert source.share == pytest.approx(report.sections["shares of media"]["image 1"]["gradient"], rel=1e-4)
    assert source.picture.shape == (64, 64, 3) and source.picture.dtype == np.uint8


def test_earlier_media_have_shares_of_their_own(opened, picture):
    coded = opened.loaded.coder.encode_part(picture)
    other = Image(codes=np.concatenate([coded.codes[:4], coded.codes[:3:-1]]))
    asked = Document([
        Turn("user", [coded, Text("what is this?")]), Turn("assistant", [Text("a cat")]),
        Turn("user", [Text("and"), other]),
    ])  # fmt: skip
    found = find_sources(opened, asked, "a box")
    assert [source.modality for source in found] == ["image", "image"]
    assert 0 < sum(source.share for source in found) < 1 and found[0].share != found[1].share


@pytest.mark.parametrize(
    ("answer", "most", "message"), [(" ", None, "the answer is empty"), ("a cat", 20, "at most 20 are looked into")]
)
def test_what_cannot_be_looked_into_is_refused_in_one_line(opened, picture, answer, most, message):
    coded = opened.loaded.coder.encode_part(picture)
    with pytest.raises(ValueError, match=message) as error:
        find_sources(opened, Document([Turn("user", [coded])]), answer, most_tokens=most)
    assert "\n" not in str(error.value)


def test_codes_are_decoded_no_more_often_than_allowed(opened, picture):
    read = opened.read_prompt("what is this?", [picture], "a cat", None)
    scores = np.ones(64, np.float32)
    assert map_scores(opened, read.spans[0], scores, most_decoded=63) is None
    assert map_scores(opened, read.spans[0], scores, most_decoded=64).heat.sum() == pytest.approx(64)


def find_reddest(painted):
    red = painted[..., 0].astype(int) - painted[..., 1]
    return np.unravel_index(red.argmax(), red.shape), red


def test_heat_is_red_where_it_is():
    heat = np.zeros((16, 24))
    heat[5, 7], heat[9, 9] = 1, -3  # what speaks against the answer is not shown
    place, red = find_reddest(paint_map(MediaMap("image", torch.rand(3, 16, 24), heat)))
    assert place == (5, 7) and (red > 0).sum() == 1
    frames = np.zeros((9, 8, 8))
    frames[8, 2, 3] = 1  # the last of six frames in a row
    painted = paint_map(MediaMap("video", torch.rand(9, 3, 8, 8), frames))
    assert painted.shape == (8, 48, 3) and find_reddest(painted)[0] == (2, 43)
    for length in (100, 16_000):  # a sound shorter than a window, too
        sound = np.zeros(length)
        sound[length // 2 : length // 2 + max(1, length // 50)] = 1
        painted = paint_map(MediaMap("audio", torch.randn(length), sound))
        (_, column), red = find_reddest(painted)
        assert column / painted.shape[1] == pytest.approx(0.5, abs=0.5 if length == 100 else 0.03)
        assert (red > 20).any(0).mean() < 0.2 or length == 100
    plain = paint_map(MediaMap("image", torch.rand(3, 4, 4), np.zeros((4, 4))))
    assert (plain[..., 0] == plain[..., 1]).all()

"""Codes as a language: measures against plain formulas, a game that is won, and one that cannot be."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image as Pillow
from scipy.stats import spearmanr

from tests.tiny_model import tiny_model
from unimodal.evaluation.inspection import codes, make_report
from unimodal.evaluation.inspection.game import GameSettings, play
from unimodal.evaluation.inspection.opened import OpenedModel
from unimodal.evaluation.inspection.report import InspectionInput
from unimodal.sequence.document import Audio, Image

QUICK = GameSettings(symbols=3, values=8, width=32, steps=400)


def test_topographic_similarity_is_spearman_s_correlation():
    generator = np.random.default_rng(0)
    meanings, messages = generator.random((9, 9)), generator.integers(0, 3, (9, 9)).astype(float)
    pairs = np.triu_indices(9, 1)
    expected = spearmanr(meanings[pairs], messages[pairs]).statistic
    assert codes.measure_topography(meanings, messages) == pytest.approx(expected)
    assert codes.measure_topography(meanings, np.zeros((9, 9))) == 0.0


def test_a_message_that_names_its_item_wins_every_game_and_a_constant_one_wins_by_chance():
    generator = np.random.default_rng(0)
    named, same = np.arange(40)[:, None], np.zeros((40, 1), dtype=int)
    own = [[item] for item in range(40)]
    assert codes.guess_targets(codes.compare_messages(named, named), generator, own) == 1.0
    assert codes.guess_targets(codes.compare_messages(same, same), generator, own) == pytest.approx(
        1 / codes.CANDIDATES
    )


def test_classes_are_told_from_the_symbols_of_others():
    classes = np.array(["a", "b"] * 10)
    messages = np.stack([np.where(classes == "a", 1, 2), np.arange(20)], 1)
    assert codes.classify_held_out(messages, classes, 20) == 1.0
    assert codes.classify_held_out(np.zeros((20, 2), dtype=int), classes, 2) <= 0.5


def test_a_language_is_learnt_where_there_is_something_to_name():
    torch.manual_seed(0)
    items = torch.randint(0, 24, (24, 5))
    views = items.expand(2, -1, -1)
    before = torch.get_rng_state()
    speaker, listener = play(views, views, 24, QUICK)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        fit = listener(speaker(items), items)
        assert speaker(items).shape == (24, 3, 8)
    assert (fit.argmax(-1) == torch.arange(24)).float().mean() > 0.8


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Bright and dark pictures, each kind in a folder of its own."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    found = []
    for name, low in (("dark", 0), ("bright", 160)):
        (folder / name).mkdir()
        for number in range(6):
            picture = low + generator.integers(0, 90, (8, 8, 3), dtype=np.uint8)
            Pillow.fromarray(picture.astype(np.uint8)).resize((32, 32)).save(folder / name / f"{number}.png")
            found.append(Image(path=folder / name / f"{number}.png"))
    return found


def test_the_codes_of_a_model_are_played_with(pictures):
    model = tiny_model()
    opened = OpenedModel("tiny", model.decoder, model.template.text, model)
    given = InspectionInput(files=pictures, settings={"symbols": 2, "values": 4, "steps": 20})
    report = make_report("codes", opened, given)
    assert report.sections["items"] == {
        "model": "tiny", "kind": "image", "items": 12, "classes": 2, "chance in a game": 1 / 8,
    }  # fmt: skip
    codes_row, made = report.sections["languages"].values()
    assert codes_row["symbols"] == 64 and made["symbols"] == 2 and made["values used"] <= 4
    assert 0 <= codes_row["right, another of the class"] <= 1 and len(report.arrays["messages"]) == 12
    figure = Figure()
    report.draw(figure)
    assert len(figure.axes) == 2
    with pytest.raises(ValueError, match="give 8 media or more"):
        make_report("codes", opened, InspectionInput(files=pictures[:7]))
    with pytest.raises(ValueError, match="values at least 2"):
        make_report("codes", opened, InspectionInput(files=pictures, settings={"values": 1}))


@pytest.mark.parametrize("shape", [(3, 16, 20), (4, 3, 16, 16), (2000,)])
def test_a_view_is_of_the_same_shape_and_nearly_the_same(shape):
    medium = torch.rand(shape)
    view = codes.make_view(medium, torch.Generator().manual_seed(0))
    assert view.shape == medium.shape and not torch.equal(view, medium)
    assert view.min() >= (0 if len(shape) > 1 else -1) and view.max() <= 1
    assert codes.describe_item(medium).dim() == 1


def test_a_model_without_tokenizers_has_no_codes(open_tiny):
    with pytest.raises(ValueError, match="llama has no tokenizer of media"):
        make_report("codes", open_tiny("llama"), InspectionInput(files=[Audio(path="a.wav")] * 8))

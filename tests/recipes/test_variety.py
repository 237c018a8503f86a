"""Asking nano again gives another picture, and a rebuilt folder is asked as the released one is."""

from pathlib import Path

import pytest

from recipes.assemble_nano import AssembleRecipe
from unimodal import load
from unimodal.model_folder.settings import MediumSettings, read_sampling
from unimodal.sequence.document import Document, Turn

NANO = Path("model_cards/nano")


def test_a_rebuilt_nano_samples_as_the_released_one():
    wanted = {name: MediumSettings.model_validate(values) for name, values in AssembleRecipe().sampling.items()}
    assert read_sampling(NANO) == wanted


@pytest.mark.sweep("recipes at work")
def test_at_least_six_of_ten_seeds_draw_another_picture_that_is_the_same_at_first():
    model = load(NANO, device="cpu")
    documents = [Document([Turn("user", model.wording.phrase_request("red apple", "image"))])] * 10
    codes = [answer[0].part.codes.ravel().tolist() for answer in model.answers(documents, to="image", seeds=range(10))]
    assert len({tuple(row) for row in codes}) >= 6
    assert len({tuple(row[:32]) for row in codes}) == 1  # what it shows is not drawn by lot
    greedy = model.answers(documents[:2], to="image", seeds=[0, 1], temperature=0.0)
    assert greedy[0][0].part.codes.tolist() == greedy[1][0].part.codes.tolist()

"""tools/measure_naming.py: things are named by the nearest codes, held-out ones after one look."""

import numpy as np
import torch

from tools.measure_naming import Pictures, find_again, find_interval, measure_naming, name_seen

STYLES = ("noto", "fluent3d", "twemoji")


def make_pictures(num_concepts=6, held_out=2):
    """One picture of each concept in three styles; the last concepts are held out."""
    concept = np.repeat(np.arange(num_concepts), len(STYLES))
    return Pictures(
        np.zeros((len(concept), 1)), concept, np.tile(STYLES, num_concepts), concept >= num_concepts - held_out
    )


def test_codes_that_say_the_concept_name_everything_and_codes_of_other_concepts_nothing():
    pictures = make_pictures()
    told = torch.eye(6)[torch.from_numpy(pictures.concept)]
    report = measure_naming(told, pictures)
    assert report["seen"]["twemoji"]["share"] == 1 and report["seen"]["twemoji"]["n"] == 4
    assert report["one_look_all"] == {"share": 1.0, "n": 12, "interval_95": report["one_look_all"]["interval_95"]}
    others = np.where(pictures.style == "twemoji", (pictures.concept + 1) % 4, pictures.concept)
    assert not name_seen(torch.eye(6)[torch.from_numpy(others)], pictures, "twemoji").any()
    assert find_again(told, pictures, "noto", "twemoji").all()


def test_an_interval_holds_its_share_and_narrows():
    low, high = find_interval(30, 100)
    assert 0.21 < low < 0.3 < high < 0.41
    assert np.diff(find_interval(300, 1000)) < high - low

"""tools/measure_naming.py: things are named by the nearest codes, held-out ones after one look."""

import numpy as np
import torch

from tools.measure_naming import Pictures, find_again, measure_naming, name_seen

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
    assert not name_seen(torch.eye(6)[torch.from_numpy(others)], pictures, "twemoji")[0].any()
    assert find_again(told, pictures, "noto", "twemoji")[0].all()
    # twelve questions about two concepts tell no more than two
    assert report["one_look_all"]["interval_95"][0] == report["one_look"]["noto → twemoji"]["interval_95"][0] < 0.4

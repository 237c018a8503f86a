"""A judge of drawings finds a concept's own picture, and takes another's for what it is."""

import numpy as np
import torch
from PIL import Image

from unimodal.evaluation.drawing_judge import DrawingJudge, read_picture


def test_it_tells_whose_picture_a_drawing_is(tmp_path):
    chance, concepts = np.random.default_rng(0), []
    for name in ("spots", "bars", "plain"):
        files = {"name": name}
        for style in ("first", "second"):
            pixels = np.full((64, 64, 3), 255, np.uint8)
            if name == "spots":
                pixels[chance.integers(0, 64, 300), chance.integers(0, 64, 300)] = (200, 0, 0)
            elif name == "bars":
                pixels[:, :: 4 if style == "first" else 6] = (0, 0, 160)
            files[style] = str(tmp_path / f"{name}_{style}.png")
            Image.fromarray(pixels).save(files[style])
        concepts.append(files)
    judge = DrawingJudge(concepts, ("first", "second"))
    drawn = [read_picture(concept["second"]) for concept in concepts]
    right = judge.judge(drawn, ["spots", "bars", "plain"])
    wrong = judge.judge(drawn, ["bars", "plain", "spots"])
    assert drawn[0].shape == (3, 64, 64) and float(torch.stack(drawn).max()) <= 1
    assert right["nearest_is_own"]["percent"] == 100 and right["likeness"] > 0.99
    assert wrong["nearest_is_own"]["percent"] == 0 and wrong["likeness"] < 0.5

"""Boxes as four ordered codes (Pix2Seq)."""

import importlib

import pytest
import torch

from tests.grounded_scenes import grounded_media
from unimodal.media.limits import MediaLimits
from unimodal.media.registry import FileTarget
from unimodal.tokenizers.codes import Codes

__all__ = ["grounded_media"]


@pytest.fixture
def boxes(grounded_media):
    return importlib.import_module("unimodal.tokenizers.more_media.boxes")


@pytest.mark.parametrize("num_bins", [2, 65, 2000])
@pytest.mark.parametrize("order", ["yxyx", "xyxy"])
def test_every_side_is_the_bin_of_the_published_rule(boxes, num_bins, order):
    """quantize = round(x · (bins - 1)), dequantize = code / (bins - 1), in the order top, left, bottom, right."""
    tokenizer = boxes.BoxTokenizer(boxes.BoxConfig(num_bins=num_bins, order=order))
    drawn = torch.rand(50, 2, 2, generator=torch.Generator().manual_seed(0)).sort(1).values.flatten(1)  # x y x y
    codes = tokenizer.encode(drawn[:, None])
    left, top, right, bottom = (drawn * (num_bins - 1)).round().long().T
    wanted = (top, left, bottom, right) if order == "yxyx" else (left, top, right, bottom)
    assert torch.equal(codes.ids[..., 0], torch.stack(wanted, 1))
    back = tokenizer.decode(codes)[:, 0]
    assert (back - drawn).abs().max() <= 0.5 / (num_bins - 1) + 1e-6
    assert torch.equal(tokenizer.encode(back[:, None]).ids, codes.ids)


def test_every_code_comes_back(boxes):
    tokenizer = boxes.BoxTokenizer(boxes.BoxConfig(num_bins=9))
    every = torch.cartesian_prod(*[torch.arange(9)] * 4)
    ids = every[(every[:, 0] <= every[:, 2]) & (every[:, 1] <= every[:, 3])][..., None]
    assert torch.equal(tokenizer.encode(tokenizer.decode(Codes.whole(ids))).ids, ids)
    wrong = Codes.whole(torch.tensor([[[8], [1], [2], [0]]]))  # bottom above top, right left of left
    assert tokenizer.decode(wrong).flatten().tolist() == [0, 2 / 8, 1 / 8, 1]


@pytest.mark.parametrize("num_bins", [2, 33, 300])
def test_near_bins_have_near_vectors(boxes, num_bins):
    vectors = boxes.BoxTokenizer(boxes.BoxConfig(num_bins=num_bins)).code_features("box")
    distance = torch.cdist(vectors, vectors)
    assert (distance[0].diff() > 0).all() and (distance[-1].flip(0).diff() > 0).all()
    assert boxes.BoxTokenizer(boxes.BoxConfig()).code_features("image") is None


def test_a_file_comes_back_and_others_are_refused(boxes, tmp_path):
    path = tmp_path / "a.box"
    boxes.save_box(torch.tensor([0.25, 0.125, 0.5, 1]), path, None)
    assert path.read_text() == "box 0.25 0.125 0.5 1\n" and boxes.is_box(path.read_bytes()[:64])
    assert boxes.load_box(path, FileTarget(), MediaLimits()).tolist() == [0.25, 0.125, 0.5, 1]
    for text, message in {
        "box 1 2": "is no box", "box a b c d": "is no box", "": "is empty", "box 0 0 1 2": "0 ≤ top ≤ bottom ≤ 1",
        "box 0.5 0 0.25 1": "left ≤ right", "bax 0 0 1 1": "holds 'bax 0 0 1 1'", "box nan 0 1 1": "a box is",
        "box " + "0 " * 10_000: "is no box",
    }.items():  # fmt: skip
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            boxes.load_box(path, FileTarget(), MediaLimits())


def test_what_is_no_box_is_refused(boxes):
    tokenizer = boxes.BoxTokenizer(boxes.BoxConfig())
    for media, message in ((torch.zeros(2, 4), "B, 1, 4"), (torch.full((1, 1, 4), 1.5), "shares from 0 to 1; got 1.5")):
        with pytest.raises(ValueError, match=message):
            tokenizer.encode(media)
    with pytest.raises(ValueError, match="a box is 4 codes"):
        tokenizer.decode(Codes.whole(torch.zeros(1, 3, 1, dtype=torch.int64)))

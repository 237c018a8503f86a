"""tools/prepare_pictures.py: folders for a picture tokenizer, nothing held out among what is trained on."""

import json

import numpy as np
import pytest
from PIL import Image

from tools import prepare_pictures
from tools.prepare_pictures import CLIP_ART, compose_scene, cut_out


def draw_disc(colour):
    """A disc of a colour in the middle of a white picture of 64×64."""
    y, x = np.mgrid[:64, :64] - 31.5
    return np.where((y**2 + x**2 < 20**2)[..., None], np.array(colour), 255).astype(np.uint8)


@pytest.fixture
def prepared(tmp_path):
    """Six concepts of one training picture each, the last of them held out, and two of the style that is tested on."""
    concepts = [
        {"id": n, "key": f"1f60{n}", "family": f"1f60{n}", "label": f"thing {n}", "tags": [], "group": "objects",
         "split": "heldout" if n == 5 else "train"}
        for n in range(6)
    ]  # fmt: skip
    (tmp_path / "concepts.json").write_text(json.dumps(concepts))
    pixels = np.stack([draw_disc((40 * n, 0, 200)) for n in [*range(6), 0, 5]])
    styles = np.array(["noto"] * 6 + ["twemoji"] * 2)
    np.savez(tmp_path / "images.npz", pixels=pixels, concept=np.array([*range(6), 0, 5]), style=styles)
    return tmp_path


def test_pictures_lie_in_folders_by_what_they_are_for(prepared):
    raw = prepared / "raw"
    (raw / CLIP_ART / "food").mkdir(parents=True)
    Image.fromarray(np.tile(draw_disc((0, 90, 0)), (2, 2, 1))).save(raw / CLIP_ART / "food" / "pea.png")
    Image.new("RGB", (80, 50), "white").save(raw / CLIP_ART / "food" / "blank.png")
    arguments = ["--raw", str(raw), "--prepared", str(prepared), "--scenes", "2"]
    prepare_pictures.main(arguments)
    out = prepared / "pictures"
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png"))
    assert files == sorted(
        [f"train/{kind}/1f60{n}/noto.png" for n in range(5) for kind in ("main/emoji", "more/views")]
        + ["train/more/clipart/food/pea.png", "train/main/scenes/00000.png", "train/main/scenes/00001.png"]
        + ["heldout/1f605/noto.png", "unseen_style/1f600/twemoji.png", "unseen_style/1f605/twemoji.png"]
    )
    first = json.loads((out / "pictures.json").read_text())
    prepare_pictures.main(arguments)
    assert json.loads((out / "pictures.json").read_text()) == first
    assert first["train/main/emoji"]["pictures"] == 5
    with Image.open(out / "heldout/1f605/noto.png") as picture:
        assert np.array_equal(np.asarray(picture), draw_disc((200, 0, 200)))


def test_figures_of_a_scene_lie_apart_and_bring_no_white_with_them():
    _, mask = cut_out(draw_disc((255, 0, 0)))
    assert mask.getpixel((32, 32)) == 255 and mask.getpixel((0, 0)) == 0
    for seed in range(4):
        scene = compose_scene([draw_disc((255, 0, 0)), draw_disc((0, 0, 0))], np.random.default_rng(seed)).astype(int)
        red = (scene[..., 0] > 200) & (scene[..., 1:].max(-1) < 60)
        black = scene.max(-1) < 40
        assert 20 < red.sum() < 700 and 20 < black.sum() < 700


def test_missing_clip_art_is_one_line(prepared, capsys):
    with pytest.raises(SystemExit):
        prepare_pictures.main(["--raw", str(prepared), "--prepared", str(prepared), "--scenes", "0"])
    assert "fetch_data.py --set clipart" in capsys.readouterr().err.splitlines()[-1]

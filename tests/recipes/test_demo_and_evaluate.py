"""The tour and the evaluation recipe on the tiny model: what they write, print and refuse."""

import json
import re
import sys

import numpy as np
import pytest
import torch

from recipes import demo, evaluate
from tests.tiny_model import tiny_folder
from unimodal.media.audio import save_audio
from unimodal.media.image import save_image
from unimodal.media.video import load_video, save_video
from unimodal.training.command import run_recipe


@pytest.fixture
def samples(tmp_path):
    folder = tmp_path / "samples"
    folder.mkdir()
    save_image(torch.rand(3, 20, 20), folder / "apple & pear.png")
    save_audio(torch.rand(3_000) - 0.5, folder / "hello.wav", 16_000)
    save_video(torch.rand(4, 3, 16, 16), folder / "heart.mp4", 8)
    (folder / "SOURCES.txt").write_text("where these come from")
    return folder


@pytest.mark.sweep("recipes at work")
def test_the_tour_shows_all_six_and_where_the_gallery_lies(samples, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "DRAW", ("a cat",))
    monkeypatch.setattr(demo, "SAY", ("good day",))
    monkeypatch.setattr(demo, "FILM", ("a cat",))
    out = tmp_path / "gallery"
    assert demo.main(["--model", str(tiny_folder()), "--out", str(out), "--samples", str(samples)]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == f"The gallery lies in {out / 'index.html'}"
    page = (out / "index.html").read_text()
    assert page.count("<h2>") == 6 and "apple &amp; pear: " in page and "skipped" not in printed
    named = re.findall(r'src="([^"]+)"', page)
    assert len(named) == 8 and all((out / name.replace("&amp;", "&")).stat().st_size > 0 for name in named)
    assert load_video(out / "made-video-1.gif", 8).shape[0] == 9
    assert load_video(out / "shown-heart.gif", 8).shape[0] == 4  # browsers show a GIF everywhere


def test_the_tour_skips_what_it_has_no_sample_of(tmp_path, capsys, monkeypatch):
    for name in ("DRAW", "SAY", "FILM"):
        monkeypatch.setattr(demo, name, ())
    assert demo.main(["--model", str(tiny_folder()), "--out", str(tmp_path / "gallery")]) == 0
    printed = capsys.readouterr().out
    for kind in ("image", "audio", "video"):
        assert f"skipped: there is no {kind} in the model's samples" in printed


@pytest.mark.parametrize("argv", [["--model", "nowhere"], ["--model", str(tiny_folder()), "--samples", "nowhere"]])
def test_the_tour_refuses_in_one_line(argv, tmp_path, capsys):
    assert demo.main([*argv, "--out", str(tmp_path / "gallery")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("demo: ") and err.count("\n") == 1 and not (tmp_path / "gallery").exists()


def test_the_evaluation_recipe_writes_one_report(tmp_path, monkeypatch, capsys):
    concepts = [
        {"id": 0, "key": "a", "family": "a", "label": "cat", "tags": [], "group": "animals", "split": "heldout"}
    ]
    (tmp_path / "concepts.json").write_text(json.dumps(concepts))
    frames = np.random.default_rng(0).integers(0, 256, (1, 9, 64, 64, 3), dtype=np.uint8)
    np.savez(tmp_path / "clips.npz", frames=frames, concept=np.zeros(1, np.int32))
    settings = [f"model={tiny_folder()}", f"data={tmp_path}", f"out={tmp_path / 'report.json'}"]
    settings.append("suites=[video_reconstruction]")
    argv = ["evaluate.py", *(word for setting in settings for word in ("--set", setting))]
    monkeypatch.setattr(sys, "argv", [*argv, "--dry-run"])
    run_recipe(evaluate.EvaluateRecipe, evaluate.run)
    assert not (tmp_path / "report.json").exists()
    monkeypatch.setattr(sys, "argv", argv)
    run_recipe(evaluate.EvaluateRecipe, evaluate.run)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["suites"]["video_reconstruction"]["clips"] == 1
    assert capsys.readouterr().out.startswith("video_reconstruction\n")

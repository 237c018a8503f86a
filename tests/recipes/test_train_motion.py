"""recipes/train_motion.py through its command line: actions told with frames, motions of clips, and what it writes."""

import json

import numpy as np
import pytest
import torch

from tests.recipes.test_finetune_full_and_pretrain import recipe
from unimodal.media.video import save_video
from unimodal.model.adapter_files import is_adapter
from unimodal.model.motion_decoder import MOTION_FILE, load_motion_decoder
from unimodal.pipeline import load

pytestmark = pytest.mark.sweep("trainings of recipes")


def write(folder, rows, name="rows.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


@pytest.fixture
def actions(pictures, tmp_path):
    """Sixteen samples of two frames; the action says which picture is the newest."""
    rows = []
    for number in range(16):
        old, new = str(pictures.parent / f"{(5 * number) % 12}.png"), str(pictures.parent / f"{number % 2}.png")
        way = 1.0 if number % 2 else -1.0
        rows.append({"frames": [old, new], "steps": [[way, 0.0], [way, way], [0.5, 0.0]], "text": "go on"})
    return write(tmp_path, rows)


def options(media_folder, rows, folder, *more):
    return [
        f"model={media_folder}", f"rows={rows}", f"out={folder}/out", f"run={folder}/run", "held_out=4", "past=1",
        "motion={hidden: 16, layers: 1, heads: 2, parts: 2, draws: 2}", "tokens_per_batch=1024", "loop.warmup_steps=1",
        "loop.log_every=1", "loop.checkpoint_every_s=1000", "loop.plot=false", *more,
    ]  # fmt: skip


def read_losses(folder):
    return [json.loads(line)["motion"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def test_actions_are_learnt_saved_and_drawn(media_folder, actions, tmp_path, capsys):
    asked = options(media_folder, actions, tmp_path, "loop.steps=40", "loop.learning_rate=0.01")
    recipe("train_motion", *asked, flags=["--dry-run"])
    told = capsys.readouterr().out
    assert "12 samples of 2 frames, each with 3 steps of 2 numbers; 4 held out" in told
    assert not (tmp_path / "out").exists()
    recipe("train_motion", *asked)
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("4 held-out samples")]
    errors = {
        words[1]: float(words[0]) for words in (part.split(" ", 1) for part in line.split("step ")[1].split(", "))
    }
    losses = read_losses(tmp_path)
    assert np.mean(losses[-10:]) < 0.85 * np.mean(losses[:10]), losses
    assert errors["mean"] == pytest.approx(0.5, abs=1e-3), "three numbers of six are 1 or -1 by turns, the others fixed"
    made = load_motion_decoder(tmp_path / "out")
    assert made.settings.steps == 3 and made.settings.past == 1
    before, after = (load(folder, device="cpu") for folder in (media_folder, tmp_path / "out"))
    assert torch.equal(before.engine.compute_next([5, 6]), after.engine.compute_next([5, 6])), "it is as it was"


def test_a_run_that_stops_goes_on_to_the_same_losses(media_folder, actions, tmp_path):
    for folder, steps in (("whole", [4]), ("parts", [2, 4])):
        for number in steps:
            recipe("train_motion", *options(media_folder, actions, tmp_path / folder), f"loop.steps={number}")
    assert read_losses(tmp_path / "whole") == read_losses(tmp_path / "parts")


def test_clips_are_told_by_their_own_motion_and_lora_learns_with_it(media_folder, tmp_path, capsys):
    g, rows = torch.Generator().manual_seed(0), []
    tokenizer = load(media_folder, device="cpu").coder.get_tokenizer("video")
    for number in range(6):
        clip = torch.rand(tokenizer.config.num_frames, 3, 64, 64, generator=g)
        save_video(clip, tmp_path / f"{number}.gif", tokenizer.frames_per_second)
        rows.append({"video": f"{number}.gif"})
    asked = options(media_folder, write(tmp_path, rows), tmp_path, "held_out=1", "loop.steps=2", "length=2048")
    recipe("train_motion", *asked, "lora={rank: 2}")
    assert "1 held-out samples" in capsys.readouterr().out
    made = load_motion_decoder(tmp_path / "out")
    assert made.settings.steps == tokenizer.num_positions and is_adapter(tmp_path / "out")
    assert made.settings.width == tokenizer.quantizer.num_dims
    before, after = (load(folder, device="cpu") for folder in (media_folder, tmp_path / "out"))
    assert not torch.equal(before.engine.compute_next([5, 6]), after.engine.compute_next([5, 6])), "the model learnt"
    with pytest.raises(SystemExit):
        recipe("train_motion", *asked, "past=9", f"out={tmp_path}/other")
    assert "has no 10 frames that are 2 apart" in capsys.readouterr().err


def test_bad_rows_are_one_line(media_folder, tiny_base, actions, pictures, tmp_path, capsys):
    good = [json.loads(line) for line in actions.read_text().splitlines()]
    cases = [
        ([{"steps": [[1.0]]}], "line 1 needs either frames and steps, or a video"),
        ([good[0], {**good[1], "frames": good[1]["frames"][:1]}], "line 2 has 1 frames; with past=1 a sample is 2"),
        ([good[0], {**good[1], "steps": [[1.0]]}], "line 2 has [1, 1] steps and the first row [3, 2]"),
        ([{**good[0], "steps": [[1.0], [2.0, 3.0]]}], "steps are no list of rows with as many finite numbers each"),
        ([{**good[0], "steps": [[float("nan"), 0.0]]}], "finite numbers"),
        ([{**good[0], "frames": ["nowhere.png", "nowhere.png"]}], "nowhere.png"),
        (good[:3], "nothing is left to learn from"),
        ([], "has no samples"),
    ]
    for number, (rows, words) in enumerate(cases):
        path = write(tmp_path, rows, f"bad{number}.jsonl")
        with pytest.raises(SystemExit) as ended:
            recipe("train_motion", *options(media_folder, path, tmp_path / "bad"), "loop.steps=1")
        assert ended.value.code == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert words in said[-1] and "Traceback" not in "".join(said), said
    (tmp_path / "torn.jsonl").write_text('{"frames": \n')
    for more, words in (
        ([f"rows={tmp_path}/torn.jsonl"], "line 1 is no JSON"),
        ([f"rows={tmp_path}/nowhere.jsonl"], "cannot be read"),
        (["length=20"], "and length is 20"),
    ):
        with pytest.raises(SystemExit):
            recipe("train_motion", *options(media_folder, actions, tmp_path / "bad"), "loop.steps=1", *more)
        assert words in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "bad" / "out" / MOTION_FILE).exists()

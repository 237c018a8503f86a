"""recipes/train_draft.py through its command line, and what opens the folder that it writes."""

import json
import shutil

import numpy as np
import pytest
import torch

from tests.recipes.test_finetune_full_and_pretrain import corpus, recipe
from unimodal.model.draft_heads import DraftHeadSettings, make_draft_heads
from unimodal.model_folder.draft_heads import load_draft_heads, save_draft_heads
from unimodal.pipeline import load

pytestmark = pytest.mark.sweep("trainings of recipes")


def options(media_folder, pictures, folder, *more):
    return [
        f"model={media_folder}", f"out={folder}/out", f"run={folder}/run", corpus(pictures, folder), "tries=2",
        "heads.num_ahead=3", "states_per_batch=40", "loop.warmup_steps=1", "loop.log_every=1",
        "loop.checkpoint_every_s=1000", "loop.plot=false", *more,
    ]  # fmt: skip


def losses(folder):
    return [json.loads(line)["ahead_1"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["future", "medusa"])
def test_heads_are_trained_saved_and_used(kind, media_folder, pictures, tmp_path, capsys):
    asked = options(media_folder, pictures, tmp_path, f"heads.kind={kind}", "loop.learning_rate=0.02")
    recipe("train_draft", *asked, "loop.steps=40")
    said = capsys.readouterr().out
    assert "image: 1 training requests, " in said and "text: 1 training requests, " in said
    assert said.count("1 of 1 answers the same") == 2
    found = losses(tmp_path / "run")
    assert len(found) == 40
    for of_pictures in (True, False):  # a batch is of one medium, and the codes of pictures are harder
        some = [loss for loss in found if (loss > 4) == of_pictures]
        assert np.mean(some[-3:]) < np.mean(some[:3])
    model = load(media_folder, device="cpu", draft_heads=tmp_path / "out")
    plain = model.generate("a red apple", "image", seed=3)
    fast = model.generate("a red apple", "image", seed=3, decoder="draft-heads")
    assert np.array_equal(fast.part.codes, plain.part.codes) and model.engine.stats.drafted > 0
    own = tmp_path / "model"  # beside a model they are found
    shutil.copytree(media_folder, own)
    shutil.copytree(tmp_path / "out", own / "draft_heads")
    again = load(own, device="cpu").generate("a red apple", "image", seed=3, decoder="draft-heads")
    assert np.array_equal(again.part.codes, plain.part.codes)


def test_a_run_that_stops_goes_on_to_the_same_losses(media_folder, pictures, tmp_path):
    whole = options(media_folder, pictures, tmp_path / "whole", "own_answers=5")
    recipe("train_draft", *whole, "loop.steps=4")
    parts = options(media_folder, pictures, tmp_path / "parts", "own_answers=5")
    recipe("train_draft", *parts, "loop.steps=2")
    [kept] = (tmp_path / "parts" / "run").glob("own_answers-*.npz")
    written = kept.stat().st_mtime_ns
    shutil.rmtree(tmp_path / "parts" / "out")
    recipe("train_draft", *parts, "loop.steps=4")
    assert kept.stat().st_mtime_ns == written
    assert losses(tmp_path / "parts" / "run") == losses(tmp_path / "whole" / "run")


def test_what_cannot_be_trained_is_one_line(media_folder, pictures, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for wrong, message in (
        ("heads={kind: medusa, num_states: 3}", "num_states is of kind future"),
        ("heads={num_ahead: 0}", "num_ahead"),
        (f"out={tmp_path}/full", "has something in it"),
        ("loop.evaluate_every=2", "nothing to validate on"),
    ):
        with pytest.raises(SystemExit) as status:
            recipe("train_draft", *options(media_folder, pictures, tmp_path), wrong)
        error = capsys.readouterr().err.strip()
        assert status.value.code == 2 and message in error and "\n" not in error
    recipe("train_draft", *options(media_folder, pictures, tmp_path), flags=("--dry-run",))
    assert "24 documents; learns from their answers" in capsys.readouterr().out
    assert not (tmp_path / "out").exists() and not (tmp_path / "run").exists()


def test_a_folder_that_is_not_whole_or_of_another_model_is_refused_in_one_line(media_folder, tmp_path):
    model = load(media_folder, device="cpu")
    rows, settings = model.vocabulary.size, DraftHeadSettings(num_ahead=2)
    heads = make_draft_heads(settings, 32)
    save_draft_heads(tmp_path / "good", heads, rows)
    found = load_draft_heads(tmp_path / "good", model.decoder, rows)
    assert all(torch.equal(one, other) for one, other in zip(found.parameters(), heads.parameters(), strict=True))
    saved = json.loads((tmp_path / "good" / "config.json").read_text())
    changes = {
        "format": 9, "width": 16, "num_rows": 7, "heads": {"num_ahead": 3}, "kind": "odd",
    }  # fmt: skip
    for name, value in changes.items():
        folder = tmp_path / name
        save_draft_heads(folder, heads, rows)
        (folder / "config.json").write_text(json.dumps(saved | {name: value}))
        with pytest.raises(ValueError) as error:
            load_draft_heads(folder, model.decoder, rows)
        assert "\n" not in str(error.value) and "train_draft.py" in str(error.value)
    (tmp_path / "good" / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"does not hold the weights of its heads"):
        load_draft_heads(tmp_path / "good", model.decoder, rows)
    with pytest.raises(ValueError, match=r"holds no draft heads; train them with recipes/train_draft\.py"):
        model.generate("a red apple", "image", decoder="draft-heads")

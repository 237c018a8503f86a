"""Masks and boxes are taught by the recipe's own command line, on a few scenes and for a few steps."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from tests.grounded_scenes import grounded_media, write_grounded_scenes
from tests.tiny_model import tiny_folder
from unimodal.pipeline import load
from unimodal.sequence.document import Document, Text, Turn
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.vocabulary import read_vocabulary

__all__ = ["grounded_media"]
ROOT = Path(__file__).resolve().parents[2]


def recipe(*settings):
    before, sys.argv = sys.argv, [str(ROOT / "recipes" / "train_grounded.py")]
    for setting in settings:
        sys.argv += [setting] if setting.startswith("--") else ["--set", setting]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        sys.argv = before


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = write_grounded_scenes(tmp_path_factory.mktemp("grounded"), 6)
    torch.manual_seed(0)
    build_tokenizer(read_system("himtok").choose_settings(small=True)).eval().round_to_half().save(folder / "masks")
    return folder


def list_settings(work, name):
    return [
        f"base={tiny_folder()}", f"masks={work}/masks", f"data={work}", f"run={work}/runs/{name}",
        f"out={work}/{name}", "tokens_per_step=400", "loop.steps=2", "loop.plot=false", "loop.threads=1",
    ]  # fmt: skip


def test_a_model_of_ours_learns_masks_and_boxes_and_keeps_its_media(work, grounded_media, capsys):
    recipe(*list_settings(work, "first"))
    recipe(*list_settings(work, "first"), "loop.steps=4")  # goes on
    recipe(*list_settings(work, "whole"), "loop.steps=4")
    one, other = (load(work / name, device="cpu") for name in ("first", "whole"))
    assert one.vocabulary.media == ("image", "audio", "video", "mask", "box")
    weights = [dict(model.decoder.named_parameters()) for model in (one, other)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    before = load(tiny_folder(), device="cpu")
    assert (one.coder.sha256.items()) >= before.coder.sha256.items()
    picture = before.generate("a red apple", to="image", seed=1, tokens=80).part
    [[*answer]] = one.answers([Document([Turn("user", [picture, Text("Where is the cat?")])])], to="box")
    [box] = [output for output in answer if output.modality == "box"]
    assert tuple(box.media.shape) == (4,) and 0 <= box.media.min() <= box.media.max() <= 1
    [[*answer]] = one.answers([Document([Turn("user", [picture, Text("Segment the cat.")])])], to="mask")
    [mask] = [output for output in answer if output.modality == "mask"]
    assert tuple(mask.media.shape) == (1, 16, 16)
    turn = one.user_turn([picture, mask.part])
    assert turn.text == "What is this?"
    assert "loss_box" in (work / "runs" / "first" / "metrics.jsonl").read_text()


def test_tasks_without_masks_need_no_tokenizer_of_them(work, grounded_media):
    recipe(*list_settings(work, "boxes"), "masks=nowhere", "shares={words_to_box: 1, box_to_name: 1}")
    assert read_vocabulary(work / "boxes" / "vocabulary.json").media == ("image", "audio", "video", "box")


def test_a_stock_base_reads_the_pictures_of_another_model(work, tiny_base, grounded_media):
    recipe(*list_settings(work, "stock"), f"base={tiny_base}", f"media={tiny_folder()}")
    assert load(work / "stock", device="cpu").vocabulary.media == ("image", "mask", "box")


def test_a_dry_run_writes_nothing(work, grounded_media, capsys):
    recipe(*list_settings(work, "dry"), "--dry-run")
    assert not (work / "dry").exists() and not (work / "runs" / "dry").exists()
    assert "rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["masks=nowhere"], "masks: nowhere holds no tokenizer; train one with"),
        (["data=nowhere"], "no such file; make it with `python tools/prepare_scenes.py`"),
        (["shares={words_to_boxes: 1}"], "there is no task 'words_to_boxes'"),
        (["media=nowhere"], "media: nowhere has no vocabulary.json"),
        (["shapes={}"], "shapes"),
        ([f"out={tiny_folder()}"], "is also the base"),
    ],
)
def test_a_mistake_is_one_line(work, grounded_media, capsys, changes, message):
    with pytest.raises(SystemExit) as stop:
        recipe(*list_settings(work, "wrong"), *changes)
    told = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and message in told.splitlines()[-1] and not (work / "wrong").exists()

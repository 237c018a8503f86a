"""Fourier heads and parallel sub-codes through the recipes: trained, saved, loaded, drawn with, not exported."""

import json

import pytest

from tests.recipes.test_finetune_full_and_pretrain import corpus, recipe
from unimodal.export.stock import export_model
from unimodal.model.fourier_head import FOURIER_FILE, find_fourier_heads
from unimodal.pipeline import load

pytestmark = pytest.mark.sweep("trainings of recipes")


def options(name, tiny_base, media_folder, pictures, folder, *more):
    start = [f"text={media_folder}"] if name == "pretrain" else [f"base={tiny_base}"]
    sizes = "{hidden_size: 32, num_layers: 1, num_heads: 2, num_kv_heads: 2, intermediate_size: 48, max_positions: 512}"
    return [
        *start, *([f"decoder={sizes}"] if name == "pretrain" else []), f"media={media_folder}", f"out={folder}/out",
        f"run={folder}/run", corpus(pictures, folder), "fourier={blocks: [image], frequencies: 3, gamma: 0.001}",
        "loop.warmup_steps=1", "loop.log_every=1", "loop.checkpoint_every_s=1000", "loop.plot=false", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["finetune_lora", "finetune_full", "pretrain"])
def test_heads_are_trained_saved_and_drawn_with(name, tiny_base, media_folder, pictures, tmp_path):
    asked = options(name, tiny_base, media_folder, pictures, tmp_path, "loop.steps=6", "loop.learning_rate=0.01")
    recipe(name, *asked)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss_image"] for line in lines if "loss_image" in line]
    assert len(lines) == 6 and losses[-1] < losses[0]
    assert (tmp_path / "out" / FOURIER_FILE).is_file()
    model = load(tmp_path / "out", device="cpu")
    heads = find_fourier_heads(model.engine.model)
    [block] = [block for block in model.vocabulary.blocks if block.label == "image"]
    assert heads.rows == [block.rows] and heads.heads[0].coefficients.bias.abs().max() > 0.001
    drawn = model.generate("a red apple", "image", seed=3)
    assert drawn.part.codes is not None
    with pytest.raises(ValueError, match="scores ordered codes by densities"):
        export_model(tmp_path / "out", tmp_path / "stock")


def test_bad_settings_are_one_line(tiny_base, media_folder, pictures, tmp_path, capsys):
    for more, words in (
        (["fourier.blocks=[pixels]"], "fourier.blocks names 'pixels'; the vocabulary has"),
        (["push={repo: me/it, license: mit, data: mine}"], "which has no Fourier heads"),
        (["loss.softmax=joint"], "leave loss.softmax at 'block'"),
    ):
        with pytest.raises(SystemExit) as ended:
            recipe("finetune_lora", *options("finetune_lora", tiny_base, media_folder, pictures, tmp_path, *more))
        assert ended.value.code == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert words in said[-1] and "Traceback" not in "".join(said)
    assert not (tmp_path / "out").exists()

"""tools/compare_initialisers.py and the settings of the tuning recipes that are shipped."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from unimodal.config import load_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.sweep("recipes at work")
def test_the_table_has_a_line_for_every_initialiser(tiny_base, media_folder, pictures, monkeypatch, capsys):
    argv = ["compare_initialisers.py", "--base", str(tiny_base), "--media", str(media_folder), "--data", str(pictures)]
    argv += ["--donor", str(media_folder), "--steps", "2", "--tokens", "256", "--rank", "2"]
    monkeypatch.setattr(sys, "argv", argv)
    runpy.run_path(str(ROOT / "tools" / "compare_initialisers.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["initialiser", "rows", "step", "0", "after", "held", "out"]
    names = {line.split()[0] for line in lines[1:]}
    assert names == {"covariance", "mean", "description", "codebook", "omp"}
    assert {line.split()[1] for line in lines[1:]} == {"free"}
    assert all(float(line.split()[3]) > 0 for line in lines[1:])


@pytest.mark.sweep("recipes at work")
def test_sharing_is_compared_on_concepts_that_are_held_out(tiny_base, media_folder, tmp_path, monkeypatch, capsys):
    """On the layout of tools/prepare_images.py; the same seed gives the same table."""
    words = ["red apple", "blue car", "green tree", "cat", "dog", "house"]
    concepts = [
        {"id": n, "key": str(n), "family": word, "label": word, "tags": [], "group": "things",
         "split": "heldout" if n > 3 else "train"}
        for n, word in enumerate(words)
    ]  # fmt: skip
    (tmp_path / "concepts.json").write_text(json.dumps(concepts))
    pixels = np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", pixels=pixels, concept=np.arange(12) % 6, style=np.repeat(["noto", "twemoji"], 6))
    argv = ["compare_initialisers.py", "--base", str(tiny_base), "--media", str(media_folder), "--data", str(tmp_path)]
    argv += ["--steps", "2", "--tokens", "256", "--rank", "2", "--only", "codebook", "--sharing", "both"]
    argv += ["--layers", "1", "--learning-rate", "0.05", "--precision", "bfloat16", "--pictures", "3"]
    monkeypatch.setattr(sys, "argv", argv)
    runpy.run_path(str(ROOT / "tools" / "compare_initialisers.py"), run_name="__main__")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert {(rows, kind) for _, rows, kind, *_ in lines} == {
        (r, k) for r in ("free", "shared") for k in ("image", "text", "all")
    }
    losses = {(rows, kind): numbers for _, rows, kind, *numbers in lines}
    for kind in ("image", "text", "all"):
        assert losses["free", kind][0] == losses["shared", kind][0]  # sharing changes nothing before training
        assert float(losses["free", kind][2]) > 0  # held out has pictures and words
    assert losses["free", "image"][1] != losses["shared", "image"][1]


@pytest.mark.parametrize(
    ("recipe", "class_name", "config"),
    [
        ("finetune_lora", "LoraRecipe", "quickstart"),
        ("finetune_lora", "LoraRecipe", "finetune_lora"),
        ("finetune_full", "FullRecipe", "finetune_full"),
        ("pretrain", "PretrainRecipe", "pretrain"),
    ],
)
def test_the_shipped_settings_are_valid_and_say_only_what_differs(recipe, class_name, config):
    cls = runpy.run_path(str(ROOT / "recipes" / f"{recipe}.py"))[class_name]
    load_config(cls, ROOT / "recipes" / "configs" / f"{config}.yaml")


def test_the_quickstart_examples_are_forty_and_all_usable():
    from unimodal.data.datasets import DatasetConfig, open_dataset

    documents = open_dataset(DatasetConfig(path=str(ROOT / "tests" / "fixtures" / "quickstart" / "data.jsonl")))
    assert len(documents) == 40 and documents.num_bad == 0

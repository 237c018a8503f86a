"""tools/compare_initialisers.py and the settings of the tuning recipes that are shipped."""

import runpy
import sys
from pathlib import Path

import pytest

from unimodal.config import load_config

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_has_a_line_for_every_initialiser(tiny_base, media_folder, pictures, monkeypatch, capsys):
    argv = ["compare_initialisers.py", "--base", str(tiny_base), "--media", str(media_folder), "--data", str(pictures)]
    argv += ["--donor", str(media_folder), "--steps", "2", "--tokens", "256", "--rank", "2"]
    monkeypatch.setattr(sys, "argv", argv)
    runpy.run_path(str(ROOT / "tools" / "compare_initialisers.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["initialiser", "step", "0", "after", "held", "out"]
    names = {line.split()[0] for line in lines[1:]}
    assert names == {"covariance", "mean", "description", "codebook", "omp"}
    assert all(float(line.split()[2]) > 0 for line in lines[1:])


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

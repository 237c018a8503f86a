"""The suite text_forgetting: the same base forgets nothing, changed weights are noticed, perplexity is what it says."""

import json
import math
import shutil

import pytest
import torch

from unimodal.evaluation import run_suites
from unimodal.evaluation.text_forgetting import compute_perplexity
from unimodal.model.base import load_base
from unimodal.model.build import build_model
from unimodal.model.lora import LoraSettings
from unimodal.pipeline import load
from unimodal.training.settings import LoopConfig
from unimodal.tuning.save import save_tuned
from unimodal.tuning.vocabulary import make_joint_template, open_media


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Definitions as WordNet writes them; the novels need the real package, so their text stands in for itself."""
    folder = tmp_path / "raw" / "wordnet-base"
    folder.mkdir(parents=True)
    line = "00001740 03 n 01 word{n} 0 000 | a red apple of kind {n}\n"
    for part in ("noun", "verb", "adj", "adv"):
        (folder / f"data.{part}").write_text("".join(line.format(n=n) for n in range(60)))
    pages = lambda raw, split: ["a sunny day in the garden"]  # noqa: E731
    monkeypatch.setattr("unimodal.evaluation.text_forgetting.read_paragraphs", pages)
    return tmp_path / "prepared"


def tuned(base_folder, media_folder, out):
    base = load_base(base_folder)
    media = open_media(media_folder)
    template = make_joint_template(base, media)
    model = build_model(base, template.vocabulary, LoraSettings(rank=2))
    return model, lambda: save_tuned(out, model, str(base_folder), template, media, LoopConfig())


@pytest.mark.sweep("recipes at work")
def test_untrained_adapters_forget_nothing_and_trained_ones_are_measured(tiny_base, media_folder, data, tmp_path):
    model, save = tuned(tiny_base, media_folder, tmp_path / "model")
    save()
    [table] = run_suites(["text_forgetting"], load(tmp_path / "model", device="cpu"), data, tmp_path / "report.json")
    figures = json.loads((tmp_path / "report.json").read_text())["suites"]["text_forgetting"]
    assert "perplexity_before" in table
    for name in ("wordnet", "austen"):
        assert figures[name]["ratio"] == 1.0
        assert figures[name]["perplexity_after_over_all_rows"] > figures[name]["perplexity_after"] > 1
    assert len(figures["answers"]) == 6

    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_(0, 0.5)
    shutil.rmtree(tmp_path / "model")
    save()
    list(run_suites(["text_forgetting"], load(tmp_path / "model", device="cpu"), data, tmp_path / "report.json"))
    figures = json.loads((tmp_path / "report.json").read_text())["suites"]["text_forgetting"]
    assert figures["wordnet"]["ratio"] != 1.0


def test_perplexity_of_a_model_that_knows_nothing_is_its_number_of_rows(tiny_base):
    model = load_base(tiny_base).model
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    assert compute_perplexity(model, [[1, 2, 3], [4, 5]], 400) == pytest.approx(400, rel=1e-4)
    assert math.isfinite(compute_perplexity(model, [[7, 8]], 10))

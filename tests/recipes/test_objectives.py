"""Objectives through the command line of the tuning recipes, on a tiny model of ours."""

import json
import shutil

import pytest
import torch

from tests.recipes.test_finetune_lora import recipe
from unimodal.model.adapter import load_adapter


@pytest.fixture(scope="module")
def preferences(pictures, tmp_path_factory):
    """Pictures that are preferred, and words that are: pairs, the same as answers with labels, and plain answers."""
    folder = tmp_path_factory.mktemp("preferences")
    pairs, labels, answers = [], [], []
    for number in range(12):
        parts = [
            [{"type": "image", "path": str(pictures.parent / f"{other}.png")}] for other in (number, (number + 5) % 12)
        ]
        for asked, sides in (("draw a red apple.", parts), ("what is this?", ["a red apple", f"a blue car {number}"])):
            right, wrong = ([{"role": "assistant", "content": side}] for side in sides)
            pairs.append({"prompt": [{"role": "user", "content": asked}], "chosen": right, "rejected": wrong})
            for side, label in ((right, True), (wrong, False)):
                labels.append({"prompt": pairs[-1]["prompt"], "completion": side, "label": label})
            answers.append({"messages": [*pairs[-1]["prompt"], *right]})
    for name, rows in (("pairs", pairs), ("labels", labels), ("answers", answers)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def settings(media_folder, preferences, tmp_path):
    def make(rows, out="out", run="run"):
        return [
            f"base={media_folder}", f"media={media_folder}", f"out={tmp_path}/{out}", f"run={tmp_path}/{run}",
            f"corpus={{datasets: [{{path: {preferences}/{rows}.jsonl}}], codes: {tmp_path}/codes, length: 256, "
            "tokens_per_batch: 256, batches_per_window: 2, validation_share: 0.2}",
            "lora.rank=4", "loop.steps=6", "loop.warmup_steps=1", "loop.log_every=1", "loop.evaluate_every=3",
        ]  # fmt: skip

    return make


def read_metrics(folder):
    timed = ("seconds_per_step", "tokens_per_second")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in timed} for line in lines]


@pytest.mark.sweep("recipes at work")
@pytest.mark.parametrize(("name", "rows"), [("preference", "pairs"), ("kto", "labels")])
def test_it_learns_what_is_preferred_and_a_stopped_run_goes_on_alike(settings, tmp_path, name, rows, monkeypatch):
    import os
    import signal

    from unimodal.training.loop import Trainer

    asked = [*settings(rows), f"objective={name}"]
    recipe("finetune_lora", *asked, flags=["--dry-run"])
    recipe("finetune_lora", *asked)
    whole = read_metrics(tmp_path / "run")
    assert {"reward_chosen", "reward_rejected", "loss_text", "loss_image"} <= set(whole[0])
    assert whole[-1]["validation_loss"] < whole[2]["validation_loss"]
    first, _ = load_adapter(tmp_path / "out")
    for folder in ("out", "run"):
        shutil.rmtree(tmp_path / folder)

    def stopped(self, step=Trainer.train_step):
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Trainer, "train_step", stopped)
        recipe("finetune_lora", *asked)
    recipe("finetune_lora", *asked)
    assert read_metrics(tmp_path / "run") == whole
    again, _ = load_adapter(tmp_path / "out")
    for (parameter, a), b in zip(first.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), parameter


@pytest.mark.sweep("recipes at work")
def test_the_whole_model_learns_a_preference(settings, tmp_path):
    asked = [setting for setting in settings("pairs") if not setting.startswith("lora.")]
    recipe("finetune_full", *asked, "objective.preference.kind=ipo")
    assert read_metrics(tmp_path / "run")[-1]["reward_accuracy"] >= 0


def test_next_token_by_its_name_is_the_default(settings, tmp_path):
    recipe("finetune_lora", *settings("answers"))
    recipe("finetune_lora", *settings("answers", "out2", "run2"), "objective=next_token")
    assert read_metrics(tmp_path / "run") == read_metrics(tmp_path / "run2")


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("name", "rows", "change", "message"),
    [
        ("finetune_lora", "pairs", "objective=prefrence", "'objective.prefrence'; did you mean 'preference'"),
        ("finetune_lora", "pairs", "objective.preference.bta=1", "did you mean 'beta'"),
        ("finetune_lora", "pairs", "objective.preference.beta=0", "objective.preference.beta=0"),
        ("finetune_lora", "pairs", "objective={preference: {}, kto: {}}", "preference and kto exclude each other"),
        ("finetune_lora", "pairs", "objective.preference={kind: ipo, label_smoothing: 0.1}", "goes with kind sigmoid"),
        ("finetune_lora", "answers", "objective=preference", "answers.jsonl line 1: the row has no pair of answers"),
        ("finetune_lora", "answers", "objective=kto", "answers.jsonl line 1: the row has no label"),
        ("finetune_lora", "pairs", "loop.steps=6", "'chosen' is of a preference dataset"),
        ("finetune_lora", "pairs", "[loss.keep_share=0.5, objective=preference]", "leave one of them out"),
        ("pretrain", "pairs", "objective=preference", "compares the model with that of the start, which knows nothing"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_status_2(settings, tmp_path, capsys, name, rows, change, message):
    changes = change[1:-1].split(", ") if change.startswith("[") else [change]
    asked = settings(rows)
    if name == "pretrain":
        asked = [s.replace("base=", "text=") for s in asked if not s.startswith("lora.")]
    with pytest.raises(SystemExit) as stop:
        recipe(name, *asked, *changes)
    assert stop.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert not (tmp_path / "out").exists()

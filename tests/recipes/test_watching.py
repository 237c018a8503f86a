"""A model is looked at while it is tuned: figures, answers, the best of them, and training as if nobody looked."""

import json
import shutil

import pytest

from tests.recipes.test_finetune_lora import recipe
from unimodal.evaluation import SUITES
from unimodal.media.audio import load_audio
from unimodal.media.image import load_image
from unimodal.model.adapter import load_adapter

pytestmark = pytest.mark.sweep("recipes at work")

ASK = (
    "watch.ask=[{words: draw a red apple., to: image}, {words: 'Say: hi', to: audio}, "
    "{files: [FILE], words: 'what is this?', to: text}]"
)


@pytest.fixture
def settings(tiny_base, media_folder, pictures, tmp_path):
    return [
        f"base={tiny_base}", f"media={media_folder}", f"out={tmp_path}/out", f"run={tmp_path}/run",
        f"corpus={{datasets: [{{path: {pictures}}}], codes: {tmp_path}/codes, length: 256, tokens_per_batch: 256, "
        "batches_per_window: 2}",
        "loop.steps=4", "loop.log_every=1", "loop.evaluate_every=2", "loop.warmup_steps=1",
    ]  # fmt: skip


def read_records(folder):
    timed = ("seconds_per_step", "tokens_per_second")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in timed} for line in lines]


def suite_of(values, calls):
    """A suite whose figures are these, one a call."""

    def run(model, data_folder, limit, seed, report):
        [answer] = model.chat("hello", tokens=2, to="text")  # the model answers
        calls.append((limit, seed, model.decoder.training, answer.modality))
        return {"style": "any", "heldout": {"right_percent": values[len(calls) - 1], "examples": [{"shown": "a"}]}}

    return run


@pytest.fixture
def stand_in(monkeypatch):
    """Puts a suite of given figures in the place of `picture_naming`, which needs data of packages."""

    def put(values):
        from unimodal import evaluation
        from unimodal.evaluation.suite import Suite

        calls = []
        opened = evaluation.open_suite
        suite = Suite(suite_of(values, calls))
        monkeypatch.setattr(evaluation, "open_suite", lambda name: suite if name == "picture_naming" else opened(name))
        return calls

    return put


@pytest.mark.parametrize("name", ["finetune_lora", "finetune_full"])
def test_answers_and_figures_of_every_look_are_kept_and_change_no_loss(settings, pictures, tmp_path, stand_in, name):
    settings = [*settings, "corpus.validation_share=0.2"]
    recipe(name, *settings)
    alone = read_records(tmp_path / "run")
    for folder in ("run", "out"):
        shutil.rmtree(tmp_path / folder)
    calls = stand_in([10.0, 20.0, 30.0])
    picture = pictures.parent / "1.png"
    watch = [ASK.replace("FILE", str(picture)), "watch.suites={picture_naming: 7}", "watch.seed=3"]
    recipe(name, *settings, *watch, f"watch.data={tmp_path}")
    watched = read_records(tmp_path / "run")
    key = "picture_naming.heldout.right_percent"
    assert [record.pop(key, None) for record in watched] == [None, 20.0, None, 30.0] and watched == alone
    assert calls == [(7, 3, False, "text")] * 3
    looks = sorted(path.name for path in (tmp_path / "run" / "watched").iterdir())
    assert looks == ["0000000", "0000002", "0000004"]
    last = tmp_path / "run" / "watched" / looks[-1]
    told = json.loads((last / "look.json").read_text())
    assert told["step"] == 4 and told["figures"] == {key: 30.0}
    drawn, said, named = (entry["answer"] for entry in told["answers"])
    assert load_image(last / drawn[0]["file"]).shape == (3, 64, 64) and len(load_audio(last / said[0]["file"]))
    assert [*named[0]] == ["text"] and told["answers"][2]["asked"]["files"] == [str(picture)]


@pytest.mark.parametrize(
    ("best_is", "values", "step"), [("most", (1, 60, 50, 40, 30), 2), ("least", (1, 60, 50, 55, 57), 4)]
)
def test_the_best_figure_is_kept_and_stops_the_run(settings, tmp_path, stand_in, best_is, values, step, capsys):
    """Without anything held out: a figure of what is watched is enough."""
    calls, out = stand_in(values), tmp_path / "out"
    key = "picture_naming.heldout.right_percent"
    settings = [
        *settings, "watch.suites={picture_naming: 1}", f"watch.data={tmp_path}", f"loop.best_by={key}",
        f"loop.best_is={best_is}", "loop.patience=2", "loop.steps=20", "loop.learning_rate=0.01",
    ]  # fmt: skip
    recipe("finetune_lora", *settings)
    assert (
        f"stopped early at step {step + 4}: no better" in capsys.readouterr().err and len(calls) == 1 + (step + 4) // 2
    )
    stopped, _ = load_adapter(out)
    for folder in (tmp_path / "run", out):
        shutil.rmtree(folder)
    settings = [one for one in settings if not one.startswith(("watch", "loop.best", "loop.patience", "loop.evaluate"))]
    # the same weights as at that step of a run of as many planned steps
    recipe("finetune_lora", *settings, f"loop.save_steps={step}")
    import torch

    kept = torch.load(tmp_path / "run" / f"checkpoint-{step}.pt", weights_only=True)["model"]
    found = dict(stopped.named_parameters())
    names = [name for name in kept if "lora" in name.lower()]
    assert names and all(any(torch.equal(kept[name], weight) for weight in found.values()) for name in names)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["watch.ask=[]"], "neither suites nor requests"),
        (["watch.suites={picture_naming: 1}", "loop.evaluate_every=0"], "loop.evaluate_every steps, which is 0"),
        (["watch.suites={picture_naming: 0}"], "greater than or equal to 1"),
        (["watch.suites={picture_namin: 1}"], "did you mean picture_naming?"),
        (["watch.suites={picture_naming: 1}", "watch.data=NOWHERE"], "prepare_images.py"),
        (["watch.ask=[{files: [NOWHERE/a.png]}]"], "no such file to ask about"),
        (["watch.ask=[{to: image}]"], "neither words nor files"),
        (["watch.ask=[{words: hello}]", "loop.best_by=scene.right"], "there are none: watch.suites is empty"),
        (["watch.ask=[{words: hello, to: smell}]"], "smell"),
    ],
)
def test_what_cannot_be_watched_is_told_before_training(settings, tmp_path, capsys, change, said):
    change = [one.replace("NOWHERE", str(tmp_path / "nowhere")) for one in change]
    with pytest.raises(SystemExit) as stop:
        recipe("finetune_lora", *settings, *change)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and last.startswith("error: ") and said in last
    assert not (tmp_path / "run" / "last.pt").exists() and "picture_naming" in SUITES

"""Validation, early stop and best weights; the plot, the trackers and the progress lines."""

import builtins
import json
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unimodal.corpus.corpus import CorpusConfig
from unimodal.training.batches import WeightedLoss
from unimodal.training.loop import Trainer
from unimodal.training.metrics import MetricsLog
from unimodal.training.plot import plot_losses, read_losses
from unimodal.training.progress import Progress
from unimodal.training.settings import LoopConfig
from unimodal.tuning.plan import check_validation


class Numbers:
    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(5)

    def next_batch(self) -> Tensor:
        return torch.randn(8, 4, generator=self.generator)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


def trainer(folder: Path, target: float = 0.0, **options: Any) -> Trainer:
    """Trains towards weights of one; the validation wants ``target``."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1, bias=False)
    nn.init.zeros_(model.weight)

    def loss(x: Tensor, step: int) -> WeightedLoss:
        wanted = x.sum(1) if model.training else target * x.sum(1)
        each = (model(x).squeeze(1) - wanted).square()
        return WeightedLoss(each.sum(), len(x), {"loss_text": (float(each.detach().sum()), len(x))}, 8)

    cfg = LoopConfig(
        **{"steps": 40, "warmup_steps": 0, "learning_rate": 0.05, "log_every": 2, "evaluate_every": 2, **options}
    )
    held_out = [torch.randn(16, 4, generator=torch.Generator().manual_seed(9))]
    return Trainer(model, Numbers(), loss, cfg, folder, validation=held_out)


def test_the_best_weights_are_kept_and_the_run_stops_early(tmp_path: Path) -> None:
    """On the way from 0 to 1 the validation is best near its target, and gets worse from there on."""
    run = trainer(tmp_path, target=0.5, patience=3)
    run.run()
    assert run.stopped_early and run.step < 40
    assert float((run.model.weight.detach() - 0.5).abs().max()) > 0.1
    assert run.use_best()
    assert run.evaluate()["validation_loss"] == pytest.approx(run.best)
    assert float((run.model.weight.detach() - 0.5).abs().max()) < 0.2
    again = trainer(tmp_path, target=0.5, patience=3)
    again.run()
    assert again.step == run.step, "a run that has stopped early does not go on"


def test_without_patience_it_goes_to_the_end_and_validation_leaves_no_trace_in_training(tmp_path: Path) -> None:
    run, plain = trainer(tmp_path / "a", target=0.5), trainer(tmp_path / "b", target=0.5, evaluate_every=0)
    run.run()
    plain.run()
    assert run.step == plain.step == 40 and not run.stopped_early
    assert torch.equal(run.model.weight, plain.model.weight)
    assert not (tmp_path / "b" / "best.pt").exists() and not plain.use_best()


def test_records_are_weighted_means_with_speed_and_validation(tmp_path: Path) -> None:
    trainer(tmp_path).run()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == 20
    assert {"loss", "loss_text", "validation_loss", "tokens_per_second", "seconds_per_step"} <= set(records[0])
    assert all(r["loss"] == pytest.approx(r["loss_text"], abs=1e-5) for r in records)


def test_means_are_over_all_tokens_not_over_steps(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.add({"loss": (10.0, 1.0), "rate": 1.0})
    log.add({"loss": (10.0, 9.0), "rate": 3.0})
    record = log.write([log.take(), {"loss": (10.0, 5.0)}], step=2)
    assert record == {"step": 2, "loss": 2.0, "rate": 2.0}


def test_the_plot_is_a_picture_with_a_line_for_each_loss(tmp_path: Path) -> None:
    from PIL import Image

    assert plot_losses(tmp_path) is None
    trainer(tmp_path).run()
    assert list(read_losses(tmp_path / "metrics.jsonl")) == [
        "loss", "loss_text", "validation_loss", "validation_loss_text",
    ]  # fmt: skip
    with Image.open(tmp_path / "loss.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or []}
    assert {(0x22, 0x22, 0x22), (0xD6, 0x27, 0x28), (0x1F, 0x77, 0xB4)} <= colours


def test_a_missing_tracker_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name in ("trackio", "torch.utils.tensorboard", "wandb", "mlflow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for name, package in {
        "trackio": r"unimodal\[train\]",
        "tensorboard": r"unimodal\[train\]",
        "wandb": "wandb",
        "mlflow": "mlflow",
    }.items():
        with pytest.raises(ValueError, match=rf"trackers: {name} is not installed; `pip install {package}`"):
            trainer(tmp_path, trackers=(name,))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_gets_every_record_and_a_resumed_run_goes_on_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Their packages are stood in for, with the names and arguments of wandb 0.30 and mlflow 3."""
    said: list[tuple[str, Any]] = []

    def note(what: str) -> Any:
        return lambda *args, **kwargs: said.append((what, kwargs or args[0] if args or kwargs else None))

    class Info:
        run_id = "of mlflow"

    class Run:
        info = Info()
        log, finish = staticmethod(lambda values, step: said.append(("log", (values, step)))), staticmethod(note("end"))

    def begin(**options: Any) -> Run:
        said.append(("begin", options))
        return Run()

    package = types.ModuleType(name)
    package.init = package.start_run = begin  # type: ignore[attr-defined]
    package.set_experiment, package.end_run = note("experiment"), note("end")  # type: ignore[attr-defined]
    package.log_params = note("parameters")  # type: ignore[attr-defined]
    package.log_metrics = Run.log  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, package)
    for steps in (4, 6):
        trainer(tmp_path / "run", trackers=(name,), steps=steps).run()
    begun = [options for what, options in said if what == "begin"]
    logged = [value for what, value in said if what == "log"]
    assert [step for _, step in logged] == [2, 4, 6] and all("validation_loss" in values for values, _ in logged)
    assert len([what for what, _ in said if what == "end"]) == 2
    if name == "wandb":
        assert begun[0]["id"] == begun[1]["id"] and begun[0]["name"] == "run" and begun[0]["resume"] == "allow"
        assert begun[0]["config"]["loop.learning_rate"] == 0.05
    else:
        assert [options["run_id"] for options in begun] == [None, "of mlflow"]
        [parameters] = [value for what, value in said if what == "parameters"]
        assert parameters["loop.learning_rate"] == "0.05"


def test_numbered_checkpoints_are_kept_up_to_a_limit_and_can_be_gone_back_to(tmp_path: Path) -> None:
    trainer(tmp_path, steps=12, save_steps=3, save_total_limit=2).run()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-12.pt", "checkpoint-9.pt"]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    shutil.copy(tmp_path / "checkpoint-9.pt", tmp_path / "last.pt")
    again = trainer(tmp_path, steps=12, save_steps=3)
    assert again.resume() and again.step == 9
    again.run()
    assert [json.loads(a)["loss"] for a in lines[-1:]] == [
        json.loads(b)["loss"] for b in (tmp_path / "metrics.jsonl").read_text().splitlines()[-1:]
    ]
    with pytest.raises(ValueError, match="set save_steps"):
        LoopConfig(save_total_limit=2)


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(100)
    progress.record({"step": 50, "seconds_per_step": 1.2, "tokens_per_second": 2345.6, "loss": 1.5})
    Progress(100, shown=False).record({"step": 50, "seconds_per_step": 1.2, "loss": 1.5})
    out, err = capsys.readouterr()
    assert out == "" and err == "step 50/100  loss 1.5  1.20 s/step  2,346 tokens/s  1.0 min left\n"


def test_a_model_without_blocks_has_no_activation_checkpointing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Linear has no activation checkpointing"):
        trainer(tmp_path, activation_checkpointing=True)


def test_a_wholly_frozen_model_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="nothing of the model is trained"):
        Trainer(model, Numbers(), lambda x, s: (x.sum(), {}), LoopConfig(steps=1), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 1e-6}, "final_learning_rate 1e-05 is above learning_rate 1e-06, and the rate would rise"),
        ({"betas": (2, 0.9)}, "betas.0"),
        ({"betas": (0.9, 1)}, "betas.1"),
        ({"betas": (-0.1, 0.9)}, "betas.0"),
        ({"seed": 2**63}, "seed"),
    ],
)
def test_settings_that_no_optimizer_should_have_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LoopConfig(**settings)


@pytest.mark.parametrize(
    ("corpus", "told"),
    [({}, False), ({"validation_share": 0.1}, True), ({"validation": [{"path": "held.jsonl"}]}, True)],
)
def test_documents_that_are_held_out_for_nothing_are_told(capsys, corpus, told):
    cfg = CorpusConfig(datasets=[{"path": "rows.jsonl"}], **corpus)
    for loop, more, expected in (
        (LoopConfig(), {}, told),
        (LoopConfig(), {"measured_at_end": True}, False),
        (LoopConfig(evaluate_every=5), {"watched": True}, False),
    ):
        check_validation(loop, cfg, **more)
        assert ("held out and never looked at" in capsys.readouterr().err) == expected

"""Training: exact resume, checkpoints that survive a full disk, a stop that loses nothing, averages and schedules."""

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unimodal.training import checkpoint, optimizers
from unimodal.training.checkpoint import load_checkpoint, save_checkpoint
from unimodal.training.loop import Interrupted, Trainer
from unimodal.training.optimizers import (
    PlainMuon,
    find_learning_rate,
    group_parameters,
    make_optimizers,
    make_orthogonal,
)
from unimodal.training.settings import LoopConfig


class Numbers:
    """Random regression batches whose generator is the cursor."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(5)

    def next_batch(self) -> Tensor:
        return torch.randn(8, 4, generator=self.generator)

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


def trainer(
    folder: Path,
    steps: int = 12,
    stop_at: int | None = None,
    identity: dict[str, str] | None = None,
    restart: bool = False,
    **options: Any,
) -> Trainer:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.3), nn.GELU(), nn.Linear(16, 1))

    def loss(x: Tensor, step: int) -> tuple[Tensor, dict[str, float]]:
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        return (model(x).squeeze(1) - x.sum(1)).square().mean(), {}

    cfg = LoopConfig(steps=steps, warmup_steps=3, log_every=1, ema_decay=0.9, **options)
    return Trainer(model, Numbers(), loss, cfg, folder, identity=identity, restart=restart)


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(r["step"], r["loss"]) for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())]


def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    whole.run()
    with pytest.raises(Interrupted, match="step 6"):
        trainer(tmp_path / "parts", stop_at=5).run()
    parts = trainer(tmp_path / "parts")
    parts.run()
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.equal(a, b)
    whole.use_ema()
    parts.use_ema()
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_killed_between_checkpoints_repeats_the_same_losses(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    whole.run()
    killed = trainer(tmp_path / "killed")
    for _ in range(4):
        killed.metrics.add(killed.train_step())
        killed.metrics.flush(step=killed.step)
    killed.save()
    for _ in range(3):  # done, logged, and lost with the process
        killed.metrics.add(killed.train_step())
        killed.metrics.flush(step=killed.step)
    trainer(tmp_path / "killed").run()
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, {"step": 1})

    def full(state: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(
        OSError, match="No space left on device; the previous checkpoint is kept|previous checkpoint is kept"
    ):
        save_checkpoint(tmp_path, {"step": 2})
    monkeypatch.undo()
    assert load_checkpoint(tmp_path) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_a_half_written_checkpoint_is_one_clear_error(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"weights": torch.zeros(1000)})
    data = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "last.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="delete it to start over"):
        load_checkpoint(tmp_path)
    assert load_checkpoint(tmp_path / "nowhere") is None


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path).run()
    other = Trainer(nn.Linear(3, 3), Numbers(), lambda x, s: (x.sum(), {}), LoopConfig(steps=2), tmp_path)
    with pytest.raises(ValueError, match="of another model"):
        other.resume()


def test_the_loss_falls(tmp_path: Path) -> None:
    run = trainer(tmp_path, steps=150, learning_rate=1e-2)
    run.run()
    record = losses(tmp_path)
    assert sum(v for _, v in record[-20:]) < 0.5 * sum(v for _, v in record[:20])


def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    model = nn.Linear(4, 1)
    run = Trainer(model, Numbers(), lambda x, step: (model(x).sum() * float("inf"), {}), LoopConfig(steps=2), tmp_path)
    with pytest.raises(ValueError, match="not finite at step 0; lower learning_rate"):
        run.run()


def test_the_schedule_warms_up_and_ends_low() -> None:
    cfg = LoopConfig(steps=100, warmup_steps=10, learning_rate=1.0, final_learning_rate=0.1)
    rates = [find_learning_rate(step, cfg) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0) and max(rates) == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.1) and all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))


def test_only_matrices_are_decayed_and_frozen_ones_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    model[2].requires_grad_(False)
    decayed, plain = group_parameters(model.parameters(), 0.1)
    assert [p.dim() for p in decayed["params"]] == [2] and decayed["weight_decay"] == 0.1
    assert len(plain["params"]) == 3 and plain["weight_decay"] == 0.0


def test_accumulated_steps_equal_one_large_step(tmp_path: Path) -> None:
    class Fixed:
        def __init__(self, size: int) -> None:
            self.data, self.at, self.size = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), 0, size

        def next_batch(self) -> Tensor:
            self.at += self.size
            return self.data[(self.at - self.size) % 8 :][: self.size]

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    weights = []
    for size, accumulation in ((8, 1), (2, 4)):
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        cfg = LoopConfig(steps=3, accumulation=accumulation, warmup_steps=0)
        run = Trainer(model, Fixed(size), lambda x, s, m=model: (m(x).square().mean(), {}), cfg, tmp_path / str(size))
        run.run()
        weights.append(model.weight.detach().clone())
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("precision, has_products, dtype", [
    ("float32", True, torch.float32), ("bfloat16", False, torch.float32), ("bfloat16", True, torch.bfloat16),
])  # fmt: skip
def test_muon_is_orthogonal_in_bfloat16_where_the_processor_has_its_products(
    monkeypatch, precision, has_products, dtype
):
    monkeypatch.setattr(optimizers, "is_slow", lambda *_: not has_products)
    torch.manual_seed(0)
    model = nn.Linear(20, 12)
    start, gradient = model.weight.detach().clone(), torch.randn(12, 20)
    cfg = LoopConfig(steps=3, optimizer="muon", precision=precision, learning_rate=0.1, weight_decay=0.0)
    muon = make_optimizers(model, cfg)[-1]
    model.weight.grad = gradient
    muon.step()
    settings = muon.param_groups[0]
    whole = make_orthogonal(gradient, settings["ns_coefficients"], settings["ns_steps"], dtype)
    expected = start - 0.2 * 0.1 * 20**0.5 * whole
    assert muon.processor_dtype == dtype
    torch.testing.assert_close(model.weight.detach(), expected, atol=5e-4, rtol=0)  # steps of 0.02


def test_muon_on_a_processor_is_torch_s_but_for_its_bfloat16():
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.eye(12, 20)) for _ in range(2))
    settings = {"lr": 0.1, "weight_decay": 0.05, "adjust_lr_fn": "match_rms_adamw"}
    pair = (PlainMuon([ours], **settings), torch.optim.Muon([theirs], **settings))
    for _ in range(3):
        ours.grad = torch.randn(12, 20)
        theirs.grad = ours.grad.clone()
        for optimizer in pair:
            optimizer.step()
    assert ours.dtype == torch.float32 and torch.allclose(ours, theirs, atol=5e-3)

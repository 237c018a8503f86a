"""Two processes (gloo, on the CPU) train to what one does, for DDP and FSDP2, and stop and resume exactly."""

import json
import os
import pickle
import shutil
import signal
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from tests.commands import ROOT, Commands
from tests.free_ports import free_ports
from unimodal.training.batches import WeightedLoss
from unimodal.training.distributed import leave, start
from unimodal.training.loop import Interrupted, Trainer
from unimodal.training.settings import LoopConfig

pytestmark = pytest.mark.sweep("ranks")


class Model(nn.Module):
    """Blocks in a list, as FSDP2 wants them, and a head that not every batch reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.GELU()) for _ in range(3))
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, float]]:
        y = x
        for layer in self.layers:
            y = y + layer(y)
        loss = ((self.head(y)[:, 0] - x.sum(1)).square() * weight).sum()
        return loss, {"weight": float(weight.sum())}


class Examples:
    """Example i of one common sequence; a rank takes every n-th batch of a step. Weights are ragged on purpose."""

    def __init__(self, rank: int, num_ranks: int, size: int) -> None:
        self.at, self.rank, self.num_ranks, self.size = 0, rank, num_ranks, size

    def next_batch(self) -> tuple[Tensor, Tensor]:
        first = (self.at * self.num_ranks + self.rank) * self.size
        self.at += 1
        rows = [torch.randn(6, generator=torch.Generator().manual_seed(first + i)) for i in range(self.size)]
        weight = torch.tensor([float(1 + (first + i) % 5) for i in range(self.size)])
        return torch.stack(rows), weight

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


class RankedExamples(Examples):
    """Examples that another number of ranks goes on with."""

    def load_other_ranks(self, states: list[dict[str, Any]]) -> None:
        self.at = min(state["at"] for state in states) * len(states) // self.num_ranks


def train(
    strategy: str,
    folder: Path,
    size: int,
    accumulation: int = 1,
    steps: int = 6,
    stop_at: int = -1,
    optimizer: Literal["adamw", "muon"] = "adamw",
    copy_of: Path | None = None,
    damaged: str = "",
    missing: str = "",
    ranked: bool = False,
) -> str:
    parallel = start(strategy)  # type: ignore[arg-type]
    if copy_of is not None and parallel.is_main:  # a checkpoint to be met in a sorry state
        shutil.copytree(copy_of, folder)
        if damaged:
            os.truncate(folder / damaged, os.path.getsize(folder / damaged) // 3)
        if missing:
            (folder / missing).unlink()
    parallel.wait_for_all()
    torch.manual_seed(0)
    model = Model()
    wrapped = parallel.wrap(model)

    def loss(batch: tuple[Tensor, Tensor], step: int) -> WeightedLoss:
        if step == stop_at and parallel.rank == parallel.num_ranks - 1:
            os.kill(os.getpid(), signal.SIGTERM)  # only one rank is asked
        total, found = wrapped(*batch)
        return WeightedLoss(total, found["weight"], {"loss_all": (float(total.detach()), found["weight"])}, size)

    cfg = LoopConfig(
        steps=steps, warmup_steps=2, learning_rate=1e-2, log_every=1, accumulation=accumulation, ema_decay=0.9,
        plot=False, evaluate_every=3, optimizer=optimizer,
    )  # fmt: skip
    batches = (RankedExamples if ranked else Examples)(parallel.rank, parallel.num_ranks, size)
    validation = [(torch.randn(4, 6, generator=torch.Generator().manual_seed(99)), torch.ones(4))]
    trainer = Trainer(model, batches, loss, cfg, folder, parallel=parallel, validation=validation)
    outcome = "done"
    try:
        trainer.run()
        trainer.use_ema()
    except Interrupted:
        outcome = "stopped"
    except ValueError as error:
        outcome = str(error)
    state = parallel.gather_state(model)
    if parallel.is_main:
        torch.save({"outcome": outcome, "model": {n: t.clone() for n, t in state.items()}}, folder / "result.pt")
    parallel.close()
    return outcome


def worker(rank: int, ports: list[int], jobs: list[dict[str, Any]], num_ranks: int = 2) -> None:
    torch.set_num_threads(1)
    for port, job in zip(ports, jobs, strict=True):
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }  # fmt: skip
        train(**job)
    leave()


RANK = """
import pickle, sys
from pathlib import Path
from tests.training.test_distributed import worker
worker(int(sys.argv[1]), *pickle.loads(Path(sys.argv[2]).read_bytes()))
"""


def run_ranks(commands: Commands, folder: Path, jobs: list[dict[str, Any]], num_ranks: int = 2) -> None:
    """All jobs one after the other in the same processes, one a rank, each job with a port that was free."""
    (folder / "jobs").write_bytes(pickle.dumps((free_ports(len(jobs)), jobs, num_ranks)))
    command = [sys.executable, "-c", RANK]
    ranks = [commands.begin([*command, str(rank), str(folder / "jobs")], cwd=ROOT) for rank in range(num_ranks)]
    try:
        for rank in ranks:
            _, err = rank.communicate(timeout=280)
            assert rank.returncode == 0, err
    finally:
        for rank in ranks:
            rank.kill()


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(r["step"], r["loss"]) for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())]


def result(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "result.pt", weights_only=True)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, commands: Commands) -> Path:
    """All runs of two ranks, in one pair of processes: both strategies whole, accumulated, stopped and resumed."""
    folder = tmp_path_factory.mktemp("ranks")
    train("ddp", folder / "one", size=8)
    jobs = []
    for strategy in ("ddp", "fsdp"):
        jobs += [
            dict(strategy=strategy, folder=folder / strategy / "whole", size=4),
            dict(strategy=strategy, folder=folder / strategy / "accumulated", size=1, accumulation=4),
            dict(strategy=strategy, folder=folder / strategy / "parts", size=4, stop_at=3),
            dict(strategy=strategy, folder=folder / strategy / "parts", size=4),
        ]
    train("ddp", folder / "one_muon", size=8, optimizer="muon")
    muon = dict(strategy="fsdp", size=4, optimizer="muon")
    jobs += [
        dict(muon, folder=folder / "muon" / "whole"),
        dict(muon, folder=folder / "muon" / "parts", stop_at=3),
        dict(muon, folder=folder / "muon" / "parts"),
    ]
    sorry = dict(size=4, steps=7, copy_of=folder / "fsdp" / "whole")
    jobs += [
        dict(sorry, strategy="fsdp", folder=folder / "sorry" / "damaged", damaged="last/__1_0.distcp"),
        dict(sorry, strategy="fsdp", folder=folder / "sorry" / "half", damaged="last/rank_00001.pt"),
        dict(sorry, strategy="fsdp", folder=folder / "sorry" / "missing", missing="last/rank_00001.pt"),
        dict(sorry, strategy="ddp", folder=folder / "sorry" / "shards"),
        dict(sorry, strategy="fsdp", folder=folder / "sorry" / "file", copy_of=folder / "one"),
    ]
    for strategy in ("ddp", "fsdp"):  # two ranks stop, one goes on; one stops, two go on
        jobs.append(dict(strategy=strategy, folder=folder / strategy / "fewer", size=4, stop_at=3, ranked=True))
    train("ddp", folder / "ddp" / "more", size=4, accumulation=2, stop_at=3, ranked=True)
    jobs.append(dict(strategy="ddp", folder=folder / "ddp" / "more", size=4, ranked=True))
    run_ranks(commands, folder, jobs)
    train("ddp", folder / "ddp" / "fewer", size=4, accumulation=2, ranked=True)
    alone = dict(strategy="fsdp", folder=folder / "fsdp" / "fewer", size=4, accumulation=2, ranked=True)
    run_ranks(commands, folder, [alone], num_ranks=1)
    return folder


@pytest.mark.timeout(300)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("run", ["whole", "accumulated"])
def test_two_ranks_are_one_and_accumulation_is_a_larger_batch(runs: Path, strategy: str, run: str) -> None:
    one, two = losses(runs / "one"), losses(runs / strategy / run)
    assert [step for step, _ in one] == [step for step, _ in two] == list(range(1, 7))
    for (_, a), (_, b) in zip(one, two, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    for name, tensor in result(runs / "one")["model"].items():
        torch.testing.assert_close(result(runs / strategy / run)["model"][name], tensor, rtol=0, atol=1e-5)


@pytest.mark.timeout(300)
def test_muon_on_sharded_matrices_is_muon_on_whole_ones(runs: Path) -> None:
    """To 1e-5, though it iterates in bfloat16; Muon's weights are others than AdamW's."""
    one, two = losses(runs / "one_muon"), losses(runs / "muon" / "whole")
    assert [step for step, _ in two] == list(range(1, 7))
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], abs=1e-5)
    for name, tensor in result(runs / "one_muon")["model"].items():
        torch.testing.assert_close(result(runs / "muon" / "whole")["model"][name], tensor, rtol=0, atol=1e-5)
    other = result(runs / "one")["model"]["layers.0.0.weight"]
    assert (result(runs / "muon" / "whole")["model"]["layers.0.0.weight"] - other).abs().max() > 1e-3


@pytest.mark.timeout(300)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "muon"])
def test_one_rank_that_is_stopped_stops_all_and_they_resume_exactly(runs: Path, strategy: str) -> None:
    parts, whole = runs / strategy / "parts", runs / strategy / "whole"
    assert losses(parts) == losses(whole)
    assert result(parts)["outcome"] == "done"
    for name, tensor in result(whole)["model"].items():
        assert torch.equal(result(parts)["model"][name], tensor), name


@pytest.mark.timeout(300)
def test_the_sharded_checkpoint_is_a_folder_of_shards_and_the_other_one_file(runs: Path) -> None:
    assert (runs / "ddp" / "whole" / "last.pt").is_file()
    names = {path.name for path in (runs / "fsdp" / "whole" / "last").iterdir()}
    assert {".metadata", "__0_0.distcp", "__1_0.distcp", "rank_00000.pt", "rank_00001.pt"} <= names
    assert not list((runs / "fsdp").rglob("*.part"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("parts", ["ddp/fewer", "fsdp/fewer", "ddp/more"])
def test_another_number_of_ranks_goes_on(runs: Path, parts: str) -> None:
    """With as many batches a step it trains to the same weights."""
    assert result(runs / parts)["outcome"] == "done"
    assert [step for step, _ in losses(runs / parts)] == list(range(1, 7))
    for (_, a), (_, b) in zip(losses(runs / "one"), losses(runs / parts), strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    for name, tensor in result(runs / "one")["model"].items():
        torch.testing.assert_close(result(runs / parts)["model"][name], tensor, rtol=0, atol=1e-5)


@pytest.mark.timeout(300)
def test_a_checkpoint_of_two_ranks_is_not_taken_up_by_one(runs: Path) -> None:
    assert "is of 2 processes; resume it with as many, not 1" in train(
        "ddp", runs / "one_of_two", size=8, steps=7, copy_of=runs / "ddp" / "whole"
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("damaged", "cannot be read or is of another model"),
        ("half", "rank_00001.pt cannot be read"),
        ("missing", "is incomplete, rank_00001.pt is missing; delete it to start over"),
        ("shards", "is in shards; resume it under torchrun"),
        ("file", "is of 1 process; resume it with as many"),
    ],
)
def test_checkpoints_in_a_sorry_state_are_one_line_on_every_rank(runs: Path, name: str, message: str) -> None:
    outcome = result(runs / "sorry" / name)["outcome"]
    assert message in outcome and "\n" not in outcome


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    parallel = start("fsdp")
    assert (parallel.rank, parallel.num_ranks) == (0, 1)
    assert parallel.gather(3) == [3] and parallel.sum_over_ranks([1.0, 2.0]) == [1.0, 2.0]

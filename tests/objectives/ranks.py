"""Runs of an objective over a few documents: whole, stopped and resumed, and divided over two processes."""

import json
import multiprocessing
import os
import signal

import torch

from tests.free_ports import free_ports
from tests.objectives.test_packed import Fixed
from unimodal.training.batches import WeightedLoss
from unimodal.training.distributed import start
from unimodal.training.loop import Interrupted, Trainer
from unimodal.training.settings import LoopConfig


def train(module, call, items, folder, steps=3, stop_at=None, parallel=None):
    """The trained weights of a run over `items` a step, divided over the ranks. A run that is stopped: None.

    call(module, items): the summed loss and its parts.
    """
    rank, num = (0, 1) if parallel is None else (parallel.rank, parallel.num_ranks)
    wrapped = module if parallel is None else parallel.wrap(module)

    def loss(batch, step):
        torch.manual_seed(step)  # what is drawn at a step, on every rank
        if step == stop_at and module.training:
            os.kill(os.getpid(), signal.SIGTERM)
        total, parts = call(wrapped, batch)
        return WeightedLoss(total, parts["weight"])

    cfg = LoopConfig(steps=steps, warmup_steps=0, learning_rate=1e-2, plot=False, log_every=1)
    own = items[rank * len(items) // num : (rank + 1) * len(items) // num]
    more = {} if parallel is None else {"parallel": parallel}
    try:
        Trainer(module, Fixed([own]), loss, cfg, folder, **more).run()
    except (Interrupted, SystemExit):
        return None
    return [p.detach().clone() for p in module.parameters() if p.requires_grad]


def train_on_two(names, train_one, folder):
    """Two processes train by each name; the weights of each rank lie in `folder`/NAME.RANK.pt.

    train_one(name, folder, parallel): a run of two steps.
    """
    [port] = free_ports(1)
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=_run_rank, args=(rank, port, folder, names, train_one)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()


def _run_rank(rank, port, folder, names, train_one):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port)}  # fmt: skip
    torch.set_num_threads(1)
    parallel = start("ddp")
    for name in names:
        torch.save(train_one(name, folder / name, parallel), folder / f"{name}.{rank}.pt")
    (folder / f"done.{rank}").write_text(json.dumps(rank))
    parallel.wait_for_all()
    os._exit(0)


def assert_ranks_agree(folder, name, alone):
    """Both ranks hold the same weights, and these are those of one process."""
    first, second = (torch.load(folder / f"{name}.{rank}.pt") for rank in range(2))
    for a, b, c in zip(first, second, alone, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=0, atol=1e-5)

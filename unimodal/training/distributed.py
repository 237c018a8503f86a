"""One process or many, under torchrun: the same trainer and the same losses.

    python recipes/finetune_lora.py CONFIG.yaml
    torchrun --nproc-per-node 8 recipes/finetune_lora.py CONFIG.yaml

``start`` reads torchrun's environment. ``DataParallel`` copies the model to every rank and averages gradients (DDP):
for adapters, whose gradients are small. ``Sharded`` splits weights, gradients and optimizer state over the ranks
(``fully_shard``, FSDP2, as in torchtitan arXiv 2410.06511) and checkpoints through torch's distributed checkpoint.
gloo on CPUs, NCCL on GPUs.

Both average gradients over ranks, so a trainer that wants the mean over all tokens scales by ranks / all weights.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unimodal.training.checkpoint import LAST, State, load_checkpoint, save_checkpoint

LOCAL = ("random", "batches")  # the parts of a checkpoint that each rank has of its own
T = TypeVar("T")
Optimizers = Sequence[torch.optim.Optimizer]
Strategy = Literal["ddp", "fsdp"]


class Parallel:
    """A single process: the default of a trainer, and the base class of the others."""

    rank, num_ranks = 0, 1
    splits_weights = False  # whether the weights of a wrapped module are split over ranks

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self.wrapped: nn.Module | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module to call in place of ``module``. Wrap before optimizers are made."""
        self.wrapped = module
        return module

    @contextmanager
    def accumulate(self, more: bool) -> Iterator[None]:
        """A context for one forward and backward pass; ``more``: another batch of the same step follows."""
        yield

    def clip_gradients(self, parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
        """Scale gradients down to a norm of at most ``limit``; the norm that they had, over all ranks."""
        return nn.utils.clip_grad_norm_(parameters, limit)

    def sum_over_ranks(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over all ranks."""
        return list(values)

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, on every rank."""
        return [value]

    def wait_for_all(self) -> None:
        """Return once every rank has called this."""

    def close(self) -> None:
        """Leave the group of ranks; nothing may be exchanged afterwards."""

    # ---- checkpoints: ``shared`` is the same on all ranks, ``local`` is this rank's own

    def save(self, folder: Path, shared: State, local: State, name: str = LAST) -> None:
        ranks = self.gather(local)
        if self.is_main:
            save_checkpoint(folder, {**shared, **(local if self.num_ranks == 1 else {"ranks": ranks})}, name)
        self.wait_for_all()

    def load(self, folder: Path, shared: Callable[[], State], name: str = LAST) -> State | None:
        """What ``save`` wrote: the shared state and this rank's own; None if there is none.

        shared: returns a state of the same shape. If another number of ranks wrote it, the states of all those ranks
        are listed under ``ranks`` in place of this rank's own. Raises ValueError for a damaged checkpoint.
        """
        state = load_checkpoint(folder, name)
        if state is None:
            if (folder / Path(name).stem).is_dir():
                raise ValueError(
                    f"the checkpoint in {folder} is in shards; resume it under torchrun (--nproc-per-node 1 for one)"
                )
            return None
        ranks: list[State] = state.pop("ranks", None) or [_take_local(state)]
        return {**state, **(ranks[self.rank] if len(ranks) == self.num_ranks else {"ranks": ranks})}

    def get_optimizer_state(self, module: nn.Module, optimizers: Optimizers) -> object:
        return [optimizer.state_dict() for optimizer in optimizers]

    def load_optimizer_state(self, module: nn.Module, optimizers: Optimizers, state: object) -> None:
        assert isinstance(state, list)
        for optimizer, saved in zip(optimizers, state, strict=True):
            optimizer.load_state_dict(saved)

    def gather_state(self, module: nn.Module) -> dict[str, Tensor]:
        """The whole state of ``module`` on the CPU, at least on the main rank."""
        return {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}


#: Groups stay referenced until the process ends. If a DDP module held the last reference, freeing it would join gloo's
#: threads while holding the interpreter's lock, which one of them may be waiting for to free a tensor: a deadlock.
_GROUPS: list[dist.ProcessGroup | None] = []


def leave(status: int = 0) -> None:
    """End this process with ``status`` if it was ever one of many. Call it last, when everything is written.

    When the interpreter shuts down, it kills threads that wait for its lock. A thread of gloo that is about to free a
    tensor may be one of them, and the whole process would abort (SIGABRT) after its work is done. So exit functions are
    run and streams flushed, but the interpreter is not shut down.
    """
    if _GROUPS:
        atexit._run_exitfuncs()  # trackers send their last rows there
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class _Many(Parallel):
    """One of many processes: what DDP and FSDP2 have in common."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        _GROUPS.append(dist.group.WORLD)
        self.rank, self.num_ranks = dist.get_rank(), dist.get_world_size()

    def sum_over_ranks(self, values: Sequence[float]) -> list[float]:
        summed = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        dist.all_reduce(summed)
        return summed.tolist()

    def gather(self, value: T) -> list[T]:
        values = [value] * self.num_ranks
        dist.all_gather_object(values, value)
        return values

    def wait_for_all(self) -> None:
        dist.barrier()

    def close(self) -> None:
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()


class DataParallel(_Many):
    """Every rank has the whole model and its own batches. find_unused: some weights take no part in some steps."""

    def __init__(self, device: torch.device, find_unused: bool = False) -> None:
        super().__init__(device)
        self.find_unused = find_unused

    def wrap(self, module: nn.Module) -> nn.Module:
        devices = [self.device.index] if self.device.type == "cuda" else None
        self.wrapped = nn.parallel.DistributedDataParallel(
            module, device_ids=devices, gradient_as_bucket_view=True, find_unused_parameters=self.find_unused
        )
        return self.wrapped

    @contextmanager
    def accumulate(self, more: bool) -> Iterator[None]:
        assert isinstance(self.wrapped, nn.parallel.DistributedDataParallel), "wrap the module first"
        with self.wrapped.no_sync() if more else nullcontext():
            yield


class Sharded(_Many):
    """Every rank has a part of every tensor; a block is gathered while it is computed."""

    @property
    def splits_weights(self) -> bool:  # type: ignore[override]
        return self.wrapped is not None

    def clip_gradients(self, parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
        from torch.distributed.tensor import DTensor

        norm = super().clip_gradients(parameters, limit)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def wrap(self, module: nn.Module) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.num_ranks,))
        for block in find_blocks(module):
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
        self.wrapped = module
        return module

    @contextmanager
    def accumulate(self, more: bool) -> Iterator[None]:
        assert self.wrapped is not None, "wrap the module first"
        self.wrapped.set_requires_gradient_sync(not more)  # type: ignore[operator]
        yield

    def save(self, folder: Path, shared: State, local: State, name: str = LAST) -> None:
        """Write a folder ``last`` of shards: under another name first, then moved to its place."""
        import torch.distributed.checkpoint as dcp

        target = folder / Path(name).stem
        part = folder / f"{target.name}.part"
        if self.is_main:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        self.wait_for_all()
        dcp.save(_pick_tensors(shared), checkpoint_id=str(part))
        save_checkpoint(part, {"shared": _pick_rest(shared), "local": local, "num_ranks": self.num_ranks}, self._own)
        self.wait_for_all()
        if self.is_main:
            old = folder / f"{target.name}.old"
            shutil.rmtree(old, ignore_errors=True)
            if target.exists():
                os.replace(target, old)
            os.replace(part, target)
            shutil.rmtree(old, ignore_errors=True)
        self.wait_for_all()

    def load(self, folder: Path, shared: Callable[[], State], name: str = LAST) -> State | None:
        import torch.distributed.checkpoint as dcp

        target = folder / Path(name).stem
        if not target.is_dir():  # a stop between the two moves leaves the older one
            target = folder / f"{target.name}.old"
        if not target.is_dir():
            if (folder / name).is_file():
                raise ValueError(f"the checkpoint in {folder} is of 1 process; resume it with as many")
            return None
        parts, problem = None, ""
        try:
            parts = self._read_parts(target)
        except ValueError as error:
            problem = str(error)
        problem = next(filter(None, self.gather(problem)), "")  # all ranks stop, and say the same
        if problem or parts is None:
            raise ValueError(problem)
        tensors = _pick_tensors(shared())  # makes the optimizer's state, one step old: only where it is overwritten
        try:
            dcp.load(tensors, checkpoint_id=str(target))
        except (Exception, dcp.api.CheckpointException) as error:  # many kinds, and its own is no Exception
            reason = str(error).strip().splitlines()[-1][:160] if str(error).strip() else type(error).__name__
            raise ValueError(f"the checkpoint in {folder} cannot be read or is of another model: {reason}") from None
        local = parts[0]["local"] if len(parts) == 1 else {"ranks": [part["local"] for part in parts]}
        return {**tensors, **parts[0]["shared"], **local}

    def get_optimizer_state(self, module: nn.Module, optimizers: Optimizers) -> object:
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        return get_optimizer_state_dict(module, list(optimizers))

    def load_optimizer_state(self, module: nn.Module, optimizers: Optimizers, state: object) -> None:
        from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

        assert isinstance(state, dict)
        set_optimizer_state_dict(module, list(optimizers), state)

    def gather_state(self, module: nn.Module) -> dict[str, Tensor]:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        return get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))

    def _read_parts(self, target: Path) -> list[State]:
        """The own states in a checkpoint: this rank's, or those of all ranks if another number of ranks wrote it.

        Raises ValueError if one is missing or damaged.
        """
        own = load_checkpoint(target, self._own)
        first = own or load_checkpoint(target, _name_part(0))
        if first is None or (own is None and first["num_ranks"] == self.num_ranks):
            raise ValueError(f"the checkpoint {target} is incomplete, {self._own} is missing; delete it to start over")
        if own is not None and first["num_ranks"] == self.num_ranks:
            return [own]
        parts = [(name, load_checkpoint(target, name)) for name in map(_name_part, range(first["num_ranks"]))]
        missing = [name for name, part in parts if part is None]
        if missing:
            raise ValueError(f"the checkpoint {target} is incomplete, {missing[0]} is missing; delete it to start over")
        return [part for _, part in parts if part is not None]

    @property
    def _own(self) -> str:
        return _name_part(self.rank)


def _name_part(rank: int) -> str:
    return f"rank_{rank:05d}.pt"


def _take_local(state: State) -> State:
    """Take the entries `LOCAL` out of a state and return them."""
    return {name: state.pop(name) for name in LOCAL if name in state}


def find_blocks(module: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a decoder: the children of its longest module lists (two if a copy stands beside it)."""
    lists = [list(m) for m in module.modules() if isinstance(m, nn.ModuleList)]
    longest = max(map(len, lists), default=0)
    return [block for blocks in lists if len(blocks) == longest for block in blocks]


def start(strategy: Strategy = "ddp", find_unused: bool = False) -> Parallel:
    """The parallelism of this process: that of torchrun if torchrun started it, else one process on the best device.

    find_unused: of DDP, where some weights take no part in some steps (a judge that begins later)."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return Parallel(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return DataParallel(device, find_unused) if strategy == "ddp" else Sharded(device)


def _pick_tensors(state: State) -> State:
    return {name: value for name, value in state.items() if name in ("model", "optimizers", "ema")}


def _pick_rest(state: State) -> State:
    return {name: value for name, value in state.items() if name not in ("model", "optimizers", "ema")}

"""Checkpoints that are written whole or not at all and resume exactly: weights, EMA, optimizer, RNG and data cursor.

A save writes ``last.pt.part``, flushes it to the disk and renames it over ``last.pt``: a full disk, a kill or a power
cut leaves the previous checkpoint untouched.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from unimodal.training.settings import LoopConfig

#: what torch.save takes and torch.load returns; Any, since torch's and each batch source's states have their own shapes
State = dict[str, Any]


class RandomState(TypedDict):
    """The state of torch's global generators."""

    cpu: Tensor
    cuda: NotRequired[list[Tensor]]


LAST = "last.pt"
_NUMBERED = re.compile(r"checkpoint-(\d+)(\.pt)?")
#: what a run writes in its folder, its checkpoints first
OF_A_RUN = (
    "last*", "best*", "checkpoint-*", "run.json", "metrics.jsonl", "loss.png", "tensorboard", "wandb", "*.id"
)  # fmt: skip


def check_disk(folder: Path, cfg: LoopConfig, size: int) -> None:
    """Raises ValueError if the checkpoints do not fit on the disk: better now than after hours. size: of what is
    trained, in bytes."""
    copies = 3 + bool(cfg.ema_decay)  # weights, two moments of the optimizer, the average
    numbered = cfg.steps // cfg.save_steps if cfg.save_steps else 0
    copies *= 1 + min(numbered, cfg.save_total_limit or numbered)
    free = shutil.disk_usage(folder).free
    if free < copies * size:
        what = "checkpoints take" if numbered else "a checkpoint takes"
        raise ValueError(
            f"{folder} has {free / 2**20:,.0f} MiB free and {what} about {copies * size / 2**20:,.0f}; make room, or "
            "choose another folder"
        )


def save_checkpoint(folder: Path, state: State, name: str = LAST) -> Path:
    """Save ``state`` as ``folder/name``, whole or not at all. Raises OSError, for example for a full disk."""
    folder.mkdir(parents=True, exist_ok=True)
    path, part = folder / name, folder / f"{name}.part"
    try:
        with open(part, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        part.unlink(missing_ok=True)
        kept = "the previous checkpoint is kept" if path.exists() else "there is no checkpoint yet"
        raise OSError(f"could not save {path}: {error}; {kept}") from error
    os.replace(part, path)
    return path


def load_checkpoint(folder: Path, name: str = LAST) -> State | None:
    """What ``save_checkpoint`` wrote, or None if there is no file. Raises ValueError for a damaged one."""
    path = folder / name
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(f"{path} cannot be read ({type(error).__name__}); delete it to start over") from None


def has_checkpoint(folder: Path) -> bool:
    """Whether a run in this folder has saved anything: one file, or a folder of shards."""
    stem = Path(LAST).stem
    return (folder / LAST).is_file() or (folder / stem).is_dir() or (folder / f"{stem}.old").is_dir()


def name_checkpoint(step: int) -> str:
    """The file name of a numbered checkpoint, in transformers' form."""
    return f"checkpoint-{step}.pt"


def list_checkpoints(folder: Path) -> list[Path]:
    """The numbered checkpoints, files or folders of shards, the oldest first."""
    found = {int(m[1]): path for path in folder.glob("checkpoint-*") if (m := _NUMBERED.fullmatch(path.name))}
    return [found[step] for step in sorted(found)]


def drop_checkpoints(folder: Path, keep: int) -> None:
    """Remove all numbered checkpoints but the newest `keep`."""
    for path in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def set_aside(folder: Path) -> Path | None:
    """Move what a run has written in `folder` to a new folder `earlier-N` in it; return that, or None without a run.

    The checkpoint is moved first: if this is interrupted, the remaining files never look like a run that can resume.
    """
    found = [path for pattern in OF_A_RUN for path in sorted(folder.glob(pattern))]
    if not found:
        return None
    number = 1
    while (folder / f"earlier-{number}").exists():
        number += 1
    target = folder / f"earlier-{number}"
    target.mkdir()
    for path in found:
        os.replace(path, target / path.name)
    return target


def get_random_state() -> RandomState:
    """The state of torch's global generators, for ``set_random_state``."""
    state: RandomState = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: RandomState) -> None:
    """Set torch's global generators to what ``get_random_state`` returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])

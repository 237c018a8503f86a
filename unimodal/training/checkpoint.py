"""Checkpoints that appear whole or not at all, and that resume exactly: weights, EMA, optimizer, RNG and data cursor.

A save writes ``last.pt.part``, flushes it to the disk and renames it over ``last.pt``: a full disk, a kill or a power
cut leaves the checkpoint before it untouched.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

State = dict[str, Any]  # what torch.save takes: tensors, numbers, texts, and lists and dicts of these


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


def save_checkpoint(folder: Path, state: State, name: str = LAST) -> Path:
    """Saves ``state`` as ``folder/name`` atomically. OSError (a full disk, say) leaves the old file and no part
    behind."""
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
    """What ``save_checkpoint`` wrote, or None if there is none. A damaged file is a ValueError."""
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
    """A numbered checkpoint, as transformers calls it."""
    return f"checkpoint-{step}.pt"


def list_checkpoints(folder: Path) -> list[Path]:
    """The numbered checkpoints, files or folders of shards, the oldest first."""
    found = {int(m[1]): path for path in folder.glob("checkpoint-*") if (m := _NUMBERED.fullmatch(path.name))}
    return [found[step] for step in sorted(found)]


def drop_checkpoints(folder: Path, keep: int) -> None:
    """Removes all numbered checkpoints but the newest `keep`."""
    for path in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def set_aside(folder: Path) -> Path | None:
    """Moves what a run has written in `folder` into a new folder `earlier-N` in it; → that, or None without a run.

    The checkpoint goes first: whatever stops this, the rest is never taken for a run that can go on.
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
    """The state of torch's global generators, to be given back to ``set_random_state``."""
    state: RandomState = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: RandomState) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])

"""Where metrics go beside ``metrics.jsonl``: TensorBoard and Trackio, both optional (`pip install unimodal[train]`).

A tracker is a function from the run's folder and settings to a callback that takes one record of metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Callback = Callable[[dict[str, Any]], None]


def tensorboard(folder: Path, settings: Mapping[str, Any]) -> Callback:
    """Event files in ``folder/tensorboard``; see them with `tensorboard --logdir FOLDER`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("trackers: tensorboard is not installed; `pip install unimodal[train]`") from None
    writer = SummaryWriter(str(folder / "tensorboard"))

    def log(record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name != "step":
                writer.add_scalar(name, value, record["step"])
        writer.flush()

    return log


def trackio(folder: Path, settings: Mapping[str, Any]) -> Callback:
    """A local Trackio run named after the folder; see it with `trackio show`."""
    try:
        import trackio as package
    except ImportError:
        raise ValueError("trackers: trackio is not installed; `pip install unimodal[train]`") from None
    package.init(project="unimodal", name=folder.name, config=dict(settings), resume="allow")  # a resumed run goes on

    def log(record: dict[str, Any]) -> None:
        package.log({name: value for name, value in record.items() if name != "step"}, step=record["step"])

    return log


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], Callback]] = {"tensorboard": tensorboard, "trackio": trackio}

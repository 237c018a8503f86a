"""Further places for metrics beside ``metrics.jsonl``: TensorBoard, Trackio, Weights & Biases and MLflow, all optional.

Choose them by `loop.trackers: [wandb]` in the settings. Each is installed with `pip install unimodal[train]` or by its
own name, and configured by its own variables (`WANDB_PROJECT`, `WANDB_MODE=offline`, `MLFLOW_TRACKING_URI`, …). A
resumed run goes on in the same run of its tracker, whose id is kept in the run's folder.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from unimodal.files import describe_error
from unimodal.media.audio import SAMPLE_RATE_HZ as RATE_HZ
from unimodal.media.audio import load_audio
from unimodal.media.image import load_image

Record = Mapping[str, float]  # one line of metrics; `step` among them
PROJECT = "unimodal"
MOST_PARAMETERS = 100  # MLflow takes so many at once
LONGEST_PARAMETER = 500  # characters


class Tracker(Protocol):
    """Takes the records of metrics, one after the other, pictures and sounds (WAV files)."""

    def log(self, record: Record) -> None: ...

    def log_picture(self, name: str, path: Path, step: int) -> None: ...

    def log_sound(self, name: str, path: Path, step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in ``folder/tensorboard``; see them with `tensorboard --logdir FOLDER`."""

    def __init__(self, folder: Path, settings: Mapping[str, object]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ValueError("trackers: tensorboard is not installed; `pip install unimodal[train]`") from None
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, record: Record) -> None:
        for name, value in _leave_out_step(record).items():
            self._writer.add_scalar(name, value, int(record["step"]))
        self._writer.flush()

    def log_picture(self, name: str, path: Path, step: int) -> None:
        self._writer.add_image(name, load_image(path), step)
        self._writer.flush()

    def log_sound(self, name: str, path: Path, step: int) -> None:
        self._writer.add_audio(name, load_audio(path, RATE_HZ)[None], step, RATE_HZ)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Trackio:
    """A local Trackio run named after the folder; see it with `trackio show`."""

    def __init__(self, folder: Path, settings: Mapping[str, object]) -> None:
        try:
            import trackio
        except ImportError:
            raise ValueError("trackers: trackio is not installed; `pip install unimodal[train]`") from None
        self._package = trackio
        trackio.init(project=PROJECT, name=folder.name, config=dict(settings), resume="allow")

    def log(self, record: Record) -> None:
        self._package.log(_leave_out_step(record), step=int(record["step"]))

    def log_picture(self, name: str, path: Path, step: int) -> None:
        self._package.log({name: self._package.Image(str(path))}, step=step)

    def log_sound(self, name: str, path: Path, step: int) -> None:
        self._package.log({name: self._package.Audio(str(path))}, step=step)

    def close(self) -> None:
        self._package.finish()


class WeightsAndBiases:
    """A run of Weights & Biases named after the folder; `WANDB_MODE=offline` keeps it in ``folder/wandb``."""

    def __init__(self, folder: Path, settings: Mapping[str, object]) -> None:
        try:
            import wandb
        except ImportError:
            raise ValueError("trackers: wandb is not installed; `pip install wandb`") from None
        path = folder / "wandb.id"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(secrets.token_hex(4))
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=folder.name,
                id=path.read_text(),
                resume="allow",
                dir=str(folder),
                config=dict(settings),
            )
        except Exception as error:  # an error class of its own, which cannot be named before the import
            raise ValueError(
                f"trackers: wandb begins no run: {describe_error(error)}; log in, or set WANDB_MODE=offline"
            ) from None

    def log(self, record: Record) -> None:
        self._run.log(dict(_leave_out_step(record)), step=int(record["step"]))

    def log_picture(self, name: str, path: Path, step: int) -> None:
        import wandb

        self._run.log({name: wandb.Image(str(path))}, step=step)

    def log_sound(self, name: str, path: Path, step: int) -> None:
        import wandb

        self._run.log({name: wandb.Audio(str(path))}, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow named after the folder, where `MLFLOW_TRACKING_URI` says or in MLflow's own place."""

    def __init__(self, folder: Path, settings: Mapping[str, object]) -> None:
        try:
            import mlflow
        except ImportError:
            raise ValueError("trackers: mlflow is not installed; `pip install mlflow`") from None
        self._package, path = mlflow, folder / "mlflow.id"
        known = path.read_text() if path.is_file() else None
        try:
            mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
            run = mlflow.start_run(run_id=known, run_name=None if known else folder.name)
        except Exception as error:  # an error class of its own, which cannot be named before the import
            raise ValueError(f"trackers: mlflow begins no run: {describe_error(error)}") from None
        if known is None:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(run.info.run_id)
            values = [(name, str(value)[:LONGEST_PARAMETER]) for name, value in settings.items()]
            for first in range(0, len(values), MOST_PARAMETERS):
                mlflow.log_params(dict(values[first : first + MOST_PARAMETERS]))

    def log(self, record: Record) -> None:
        self._package.log_metrics(_leave_out_step(record), step=int(record["step"]))

    def log_picture(self, name: str, path: Path, step: int) -> None:
        self._package.log_artifact(str(path), name)

    def log_sound(self, name: str, path: Path, step: int) -> None:
        self._package.log_artifact(str(path), name)

    def close(self) -> None:
        self._package.end_run()


def _leave_out_step(record: Record) -> dict[str, float]:
    return {name: value for name, value in record.items() if name != "step"}


TRACKERS: dict[str, Callable[[Path, Mapping[str, object]], Tracker]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}

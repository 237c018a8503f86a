"""Pictures and sounds reach every tracker at their step. Their packages are stood in for, with the names and arguments
of tensorboard 2.20, trackio 0.5, wandb 0.30 and mlflow 3."""

import sys
import types
from pathlib import Path

import pytest
import torch

from unimodal.media.audio import save_audio
from unimodal.media.image import save_image
from unimodal.training.trackers import TRACKERS


class Said:
    """Notes the pictures and sounds that packages are given: (name, medium or path, step)."""

    def __init__(self) -> None:
        self.pictures: list[tuple[str, object, int | None]] = []

    def log(self, values: dict[str, object], step: int) -> None:
        for name, value in values.items():
            if isinstance(value, Picture):
                self.pictures.append((name, value.source, step))

    def add_image(self, name: str, picture: torch.Tensor, step: int) -> None:
        self.pictures.append((name, picture, step))

    def add_audio(self, name: str, sound: torch.Tensor, step: int, rate_hz: int) -> None:
        assert rate_hz == 16_000
        self.pictures.append((name, sound, step))

    def log_artifact(self, path: str, name: str) -> None:
        self.pictures.append((name, path, None))

    def ignore(self, *values: object, **more: object) -> None:
        pass


class Picture:
    def __init__(self, source: str) -> None:
        self.source = source


@pytest.mark.parametrize("name", list(TRACKERS))
def test_a_medium_is_logged_by_its_name_and_step(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Said()
    run = types.SimpleNamespace(log=said.log, finish=said.ignore, info=types.SimpleNamespace(run_id="a"))
    fields = {
        "tensorboard": {"SummaryWriter": lambda folder: types.SimpleNamespace(
            add_image=said.add_image, add_audio=said.add_audio, add_scalar=said.ignore, flush=said.ignore,
            close=said.ignore)},
        "trackio": {"init": said.ignore, "log": said.log, "Image": Picture, "Audio": Picture,
                    "finish": said.ignore},
        "wandb": {"init": lambda **_: run, "Image": Picture, "Audio": Picture},
        "mlflow": {"set_experiment": said.ignore, "start_run": lambda **_: run, "log_params": said.ignore,
                   "log_artifact": said.log_artifact, "log_metrics": said.ignore, "end_run": said.ignore},
    }[name]  # fmt: skip
    place = "torch.utils.tensorboard" if name == "tensorboard" else name
    package = types.ModuleType(place)
    for field, value in fields.items():
        setattr(package, field, value)
    monkeypatch.setitem(sys.modules, place, package)
    sheet = tmp_path / "0000003.png"
    save_image(torch.rand(3, 4, 6), sheet)
    tracker = TRACKERS[name](tmp_path, {"loop.steps": 3})
    tracker.log_picture("reconstructions", sheet, 3)
    sound = tmp_path / "0000003.wav"
    save_audio(torch.rand(1600) - 0.5, sound, 16_000)
    tracker.log_sound("watched/0", sound, 3)
    tracker.log({"step": 3, "loss": 0.5})
    tracker.close()
    assert [(called, step) for called, _, step in said.pictures] == [
        ("reconstructions", None if name == "mlflow" else 3), ("watched/0", None if name == "mlflow" else 3)
    ]  # fmt: skip
    (_, picture, _), (_, heard, _) = said.pictures
    if name == "tensorboard":
        assert picture.shape == (3, 4, 6) and picture.dtype == torch.uint8 and heard.shape == (1, 1600)
    else:
        assert (picture, heard) == (str(sheet), str(sound))

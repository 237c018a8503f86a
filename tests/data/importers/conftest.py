"""A folder of a few real media files, and the conversation about them that every format shall say."""

import json

import pytest
import torch

from unimodal.data.datasets import DatasetConfig, open_dataset
from unimodal.media.audio import save_audio
from unimodal.media.image import save_image
from unimodal.media.video import save_video


@pytest.fixture(scope="session")
def media(tmp_path_factory):
    """a.png, b.png, sub/c.png, s.wav and v.gif."""
    folder = tmp_path_factory.mktemp("media")
    (folder / "sub").mkdir()
    torch.manual_seed(0)
    for name in ("a.png", "b.png", "sub/c.png"):
        save_image(torch.rand(3, 12, 12), folder / name)
    save_audio(torch.rand(3200) - 0.5, folder / "s.wav", 16_000)
    save_video(torch.rand(4, 3, 16, 16), folder / "v.gif", 8)
    return folder


@pytest.fixture
def write(tmp_path):
    """`write(rows, "x.jsonl")` → path; `.json` gets a list."""

    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        lines = name.endswith(".jsonl")
        path.write_text("".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows, indent=1))
        return str(path)

    return write


@pytest.fixture
def documents(write, media):
    """`documents(rows, format=…)` → the opened dataset, with the media folder as its root."""

    def documents(rows, name="rows.jsonl", **settings):
        settings = {"media_root": media, **settings}
        return open_dataset(DatasetConfig(path=write(rows, name), **settings))

    return documents

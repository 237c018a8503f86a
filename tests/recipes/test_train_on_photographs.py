"""A published system on pictures like photographs, of mixed sizes, at 128×128: ten steps in `make test`, about two
minutes of two cores in `make study`, where an interrupted run goes on exactly and what was learnt shows."""

import json

import pytest
import torch
from torch.nn.functional import interpolate

from tests.campaigns import is_study
from tests.recipes.test_finetune_lora import recipe
from unimodal.cli.app import app
from unimodal.media.image import load_image, save_image
from unimodal.tokenizers import load_tokenizer

COUNT, STEPS, BATCH = (300, 120, 16) if is_study() else (24, 10, 4)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Smooth scenes of several scales with soft and hard edges, 130 to 260 pixels a side."""
    folder, generator = tmp_path_factory.mktemp("photos"), torch.Generator().manual_seed(0)
    for number in range(COUNT):
        height, width = torch.randint(130, 261, (2,), generator=generator).tolist()
        scene = torch.zeros(1, 3, height, width)
        for cells in (2, 5, 11):
            noise = torch.rand(1, 3, cells, cells, generator=generator) / cells
            scene += interpolate(noise, (height, width), mode="bicubic", align_corners=True)
        scene = scene / scene.amax().clamp(min=1e-3)
        top, left = (int(side * torch.rand((), generator=generator) * 0.6) for side in (height, width))
        scene[..., top : top + height // 4, left : left + width // 4] = torch.rand(1, 3, 1, 1, generator=generator)
        save_image(scene[0].clamp(0, 1), folder / f"{number:03}.png")
    return folder


def train(tmp_path, photos, name, steps):
    recipe(
        "train_tokenizer", "system=llamagen-vq16", "small=true", "sizes=[128]", f"media={photos}",
        f"run={tmp_path}/{name}_run", f"out={tmp_path}/{name}", f"batch_size={BATCH}", f"loop.steps={steps}",
        "loop.learning_rate=0.002", "loop.final_learning_rate=0.002", "loop.warmup_steps=0", "loop.log_every=1",
        f"loop.evaluate_every={STEPS}", "loop.plot=false",
    )  # fmt: skip


@pytest.mark.sweep("recipes at work")
@pytest.mark.study
@pytest.mark.timeout(3600)
def test_three_hundred_photographs_train_a_tokenizer_that_codes_a_file(tmp_path, photos, capsys):
    train(tmp_path, photos, "whole", STEPS)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "whole_run" / "metrics.jsonl").read_text().splitlines()]
    tenth = max(1, len(losses) // 10)
    assert sum(losses[-tenth:]) < 0.8 * sum(losses[:tenth])
    if is_study():
        train(tmp_path, photos, "parts", STEPS // 2)
        train(tmp_path, photos, "parts", STEPS)
        assert load_tokenizer(tmp_path / "whole").sha256 == load_tokenizer(tmp_path / "parts").sha256
        capsys.readouterr()
    picture, codes, back = photos / "000.png", tmp_path / "a.json", tmp_path / "a.png"
    for command in (
        ["tokenize", str(picture), "--out", str(codes), "--model", str(tmp_path / "whole")],
        ["detokenize", str(codes), "--out", str(back), "--model", str(tmp_path / "whole")],
    ):
        with pytest.raises(SystemExit) as ended:
            app(command)
        assert ended.value.code == 0
    assert load_image(back).shape[0] == 3

"""recipes/train_tokenizer.py on a folder of sounds: codecs with their published losses."""

import json

import pytest
import torch

from tests.recipes.test_finetune_lora import recipe
from unimodal.media.audio import save_audio
from unimodal.tokenizers import load_tokenizer

TINY = (
    "tokenizer={trunk: {width: 2, latent_width: 16, strides: [8, 5], lstm_layers: 1}, decoder: {channels_in: 16, "
    "width: 32, inner_width: 32, num_layers: 1, num_conditions: 2, attended: true, window_size: 160, hop: 40, "
    "padding: same}, codebook_size: 16}"
)
LOSSES = (
    "losses={l2: 0, mel: {weight: 5, windows: [256], bands: [20]}, "
    "adversarial: {weight: 0.1, judge: encodec, width: 2, start: 6}}"
)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Sixteen notes, much alike, of a fifth of a second, one of them at another rate."""
    folder = tmp_path_factory.mktemp("sounds")
    for number in range(16):
        rate = 16000 if number == 0 else 24000
        time = torch.arange(rate // 5) / rate
        save_audio(0.5 * torch.sin(2 * torch.pi * (220 + number) * time), folder / f"{number}.wav", rate)
    return folder


def train(tmp_path, sounds, *settings, name="a"):
    recipe(
        "train_tokenizer", "system=wavtokenizer-75", "small=true", f"media={sounds}", f"run={tmp_path}/{name}_run",
        f"out={tmp_path}/{name}", TINY, LOSSES, "crop_s=0.09", "batch_size=2", "workers=0", "loop.learning_rate=0.003",
        "loop.final_learning_rate=0.003", "loop.warmup_steps=0", "loop.log_every=1", "loop.evaluate_every=5",
        "loop.plot=false", "loop.seed=1", *settings,
    )  # fmt: skip


def read_metrics(tmp_path, name="a"):
    lines = (tmp_path / f"{name}_run" / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds_per_step"} for line in lines]


@pytest.mark.sweep("recipes at work")
def test_a_codec_learns_from_a_folder_and_goes_on_the_same(tmp_path, sounds, capsys):
    train(tmp_path, sounds, "loop.steps=10")
    assert "perplexity_audio" in capsys.readouterr().out
    train(tmp_path, sounds, "loop.steps=5", name="parts")
    train(tmp_path, sounds, "loop.steps=10", name="parts")
    whole, parts = (read_metrics(tmp_path, name) for name in ("a", "parts"))
    assert whole == parts
    steps = [line for line in whole if "mel" in line]
    assert sum(line["mel"] for line in steps[-3:]) < 0.95 * sum(line["mel"] for line in steps[:3])
    assert "matching" in steps[-1] and "matching" not in steps[0]
    saved = load_tokenizer(tmp_path / "a")
    assert saved.sha256 == load_tokenizer(tmp_path / "parts").sha256
    assert saved.decode(saved.encode(torch.zeros(1, 1, 410))).shape == (1, 1, 440)

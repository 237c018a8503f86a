"""recipes/train_tokenizer.py on sounds with texts: spelling, a teacher, a frozen trunk."""

import json

import pytest
import torch

from tests.recipes.test_finetune_lora import recipe
from tests.tokenizers.test_speech_encoders import save_whisper
from unimodal.media.audio import save_audio
from unimodal.tokenizers import load_tokenizer


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Twelve sounds of half a second with a text each, one without, and one that is longer than the rest."""
    folder = tmp_path_factory.mktemp("sounds")
    generator = torch.Generator().manual_seed(0)
    for number in range(14):
        length = 40000 if number == 12 else 8000 + 160 * number
        save_audio(0.3 * torch.randn(length, generator=generator), folder / f"{number}.wav", 16000)
        if number < 13:
            (folder / f"{number}.txt").write_text("да" if number % 2 else "你", encoding="utf-8")
    return folder


def train(tmp_path, sounds, *settings):
    recipe(
        "train_tokenizer", f"media={sounds}", f"run={tmp_path}/run", f"out={tmp_path}/out", "batch_size=4",
        "loop.steps=2", "loop.log_every=1", "loop.evaluate_every=2", "loop.plot=false", "workers=0",
        "one_held_out_of=4", *settings,
    )  # fmt: skip


def read_metrics(tmp_path):
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    return {name: value for line in lines for name, value in json.loads(line).items()}


def test_a_bottleneck_is_trained_by_spelling_behind_its_trunk(tmp_path, sounds, capsys):
    save_whisper(tmp_path / "whisper", positions=60)
    shape = '{"trunk_width": 16, "trunk_layers": 2, "context": 60, "lead_steps": 2, "window_frames": 112}'
    settings = (
        "system=whisper-bottleneck", "small=true", f"trunk={tmp_path}/whisper",
        "losses={spelling: {characters: data, hidden: 16, num_layers: 1}}",
    )  # fmt: skip
    with pytest.raises(SystemExit):
        train(tmp_path, sounds, *settings)
    assert "is no Whisper of the sizes in the tokenizer's settings" in capsys.readouterr().err
    train(tmp_path, sounds, *settings, f"tokenizer={shape}", "crop_s=0.6", "one_held_out_of=3")
    printed, said = capsys.readouterr()
    assert "12.wav" in said and "its text is of the whole; raise crop_s 0.6" in said and "has no caption" in said
    metrics = read_metrics(tmp_path)
    assert metrics["spelling"] > 0 and "validation_character_errors" in metrics and "character_errors" in printed
    saved = load_tokenizer(tmp_path / "out")
    assert saved.encode(torch.zeros(1, 1, 3200)).ids.shape == (1, 5, 1)
    kept, counts = ("trunk_memory_mb=1", f"trunk_folder={tmp_path}/heard", f"tokenizer={shape}", "crop_s=0.6"), []
    for number, bits in enumerate(
        ("[]", "[trunk.]", "[trunk.]")
    ):  # another trunk's features are no features of this one
        train(tmp_path, sounds, *settings, *kept, f"in_8_bits={bits}", f"run={tmp_path}/kept{number}")
        counts.append(len(list((tmp_path / "heard").iterdir())))
    assert counts[1] == counts[2] == 2 * counts[0] > 0


def test_sounds_without_a_text_are_trained_by_the_other_losses(tmp_path, sounds, capsys):
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for path in sounds.glob("[0-3].*"):
        (mixed / path.name).symlink_to(path)
    for number in (4, 5, 6, 12):  # the last is cut, as its text would not be
        (mixed / f"{number}.wav").symlink_to(sounds / f"{number}.wav")
    spelling = "{feature: semantic, characters: data, hidden: 16, num_layers: 1, without_text: skip}"
    losses = f"losses={{l1: 1, spelling: {spelling}}}"
    train(tmp_path, mixed, "system=speechtokenizer", "small=true", "crop_s=0.6", losses)
    assert "left out" not in capsys.readouterr().err
    metrics = read_metrics(tmp_path)
    assert metrics["l1"] > 0 and 0 < metrics["with_text"] < 1


def test_a_codec_is_taught_by_a_speech_encoder(tmp_path, sounds, capsys):
    save_whisper(tmp_path / "whisper")
    teacher = f"losses={{l1: 1, l2: 0, distillation: {{network: {tmp_path}/whisper, weight: 120}}}}"
    train(tmp_path, sounds, "system=speechtokenizer", "small=true", "crop_s=0.2", teacher)
    assert read_metrics(tmp_path)["distillation"] > 0
    with pytest.raises(SystemExit):
        train(tmp_path, sounds, "system=speechtokenizer", "small=true", "trunk=whisper-tiny.en")
    assert "has no trunk that is filled; leave trunk out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("system", "teacher"), [("s3-v2", "losses={spelling: 1}"), ("beats", "losses={distillation: ")]
)
def test_an_encoder_that_rebuilds_nothing_asks_for_a_teacher(tmp_path, sounds, capsys, system, teacher):
    with pytest.raises(SystemExit):
        train(tmp_path, sounds, f"system={system}", "small=true", "crop_s=0.2")
    assert f"learns nothing alone; teach it: --set '{teacher}" in capsys.readouterr().err


def test_a_reader_goes_on_from_another_run(tmp_path, sounds, capsys):
    save_whisper(tmp_path / "whisper", positions=60)
    shape = '{"trunk_width": 16, "trunk_layers": 2, "context": 60, "lead_steps": 2, "window_frames": 112}'
    settings = (
        "system=whisper-bottleneck", "small=true", f"trunk={tmp_path}/whisper", f"tokenizer={shape}", "crop_s=0.6",
        "losses={spelling: {characters: data, hidden: 16, num_layers: 1}}", "one_held_out_of=3",
    )  # fmt: skip

    def read(run):
        state = torch.load(tmp_path / run / "last.pt", weights_only=True)["model"]
        return {name: weight for name, weight in state.items() if name.startswith("bag.")}

    train(tmp_path, sounds, *settings)
    still = (f"losses_from={tmp_path}/run", "loop.learning_rate=1e-12", "loop.final_learning_rate=0")
    train(tmp_path, sounds, *settings, *still, f"run={tmp_path}/second", f"begin_from={tmp_path}/out")
    assert "weights of losses are from" in capsys.readouterr().err
    first, second = read("run"), read("second")
    assert first and first.keys() == second.keys()
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight, rtol=0, atol=1e-9)
    with pytest.raises(SystemExit):
        train(tmp_path, sounds, *settings, f"losses_from={tmp_path}/nowhere", f"run={tmp_path}/c", f"out={tmp_path}/d")
    assert "holds no run whose losses have weights that fit" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()

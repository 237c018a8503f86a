"""A tokenizer of one's own goes from its class to every command; it is written as CONTRIBUTING.md says."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch

from tests.campaigns import is_study
from tests.recipes.test_finetune_lora import recipe
from unimodal.media.audio import load_audio, save_audio
from unimodal.tokenizers import FAMILIES, Codes, hash_stored, load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "tests" / "recipes" / "my_sounds.py"


@pytest.fixture(scope="module")
def command(commands):
    """Runs a command as a user would, with the plugin named in the environment; its stdout."""

    def run(*arguments: object, plugin: object = PLUGIN) -> str:
        environment = {**os.environ, "UNIMODAL_PLUGINS": str(plugin), "PYTHONPATH": str(ROOT)}
        done = commands.run([sys.executable, *map(str, arguments)], cwd=ROOT, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module", autouse=True)
def forget():
    """Leaves no family behind in this process."""
    yield
    FAMILIES.pop("my_sounds", None)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Twenty tones of half a second, and questions about them."""
    folder = tmp_path_factory.mktemp("sounds")
    time_s = torch.arange(2000) / 4000
    lines = []
    for number in range(20):
        save_audio(0.5 * torch.sin(2 * torch.pi * (50 + 10 * number) * time_s), folder / f"{number}.wav", 4000)
        sound = {"type": "audio", "path": f"{number}.wav"}
        turns = [{"role": "user", "content": [sound, {"type": "text", "text": "how high is it?"}]},
                 {"role": "assistant", "content": f"tone {number}"}]  # fmt: skip
        lines.append(json.dumps({"messages": turns}))
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def trained(command, sounds, tmp_path_factory):
    """The folder that the training recipe wrote, and what it printed."""
    place = tmp_path_factory.mktemp("trained")
    settings = [
        f"media={sounds}", f"out={place}/my_tokenizer", f"run={place}/run", "family=my_sounds", "batch_size=8",
        "tokenizer.samples_per_code=20", f"loop.steps={400 if is_study() else 150}", "loop.warmup_steps=10",
        "loop.learning_rate=0.01", "loop.plot=false",
    ]  # fmt: skip
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    return place / "my_tokenizer", command("recipes/train_tokenizer.py", *arguments)


def test_it_is_short(trained):
    assert len(PLUGIN.read_text().splitlines()) <= 80


@pytest.mark.study
def test_it_is_trained(trained, sounds):
    folder, printed = trained
    report = {name: float(value) for name, value in (line.split() for line in printed.splitlines())}
    assert report["mean_squared_error"] < 0.02  # silence has 0.125
    assert 0 < report["used_audio"] <= 1 < report["perplexity_audio"] <= 625
    record = json.loads((folder / "recipe.json").read_text())
    assert record["weights_sha256"] == hash_stored(folder)
    assert json.loads((folder / "config.json").read_text())["format"] == 1


def test_the_command_lists_and_shows_it(command, trained):
    folder, _ = trained
    listed = command("-m", "unimodal", "tokenizers", "list")
    assert re.search(r"^my_sounds +audio +codes +— +Sounds by frames of 10 ms", listed, re.M)
    shown = command("-m", "unimodal", "tokenizers", "show", folder)
    assert re.search(r"codes of 'audio' +any number, of 625 values", shown)
    assert re.search(r"a second +200 positions, 1,858 bits", shown) and re.search(
        r"takes +4000 samples a second", shown
    )
    assert "samples_per_code = 40" in command("-m", "unimodal", "tokenizers", "show", "my_sounds")


@pytest.fixture(scope="module")
def media(command, trained, tmp_path_factory):
    """The folder that fine-tuning takes."""
    folder = tmp_path_factory.mktemp("media") / "media"
    command("tools/convert_checkpoint.py", "tokenizers", folder, "--audio", trained[0])
    return folder


@pytest.mark.sweep("recipes at work")
def test_a_language_model_can_be_tuned_on_its_codes(command, media, sounds, tiny_base, tmp_path):
    settings = [
        f"base={tiny_base}", f"media={media}", f"out={tmp_path}/out", f"run={tmp_path}/run",
        f"corpus={{datasets: [{{path: {sounds}/data.jsonl}}], length: 256, tokens_per_batch: 256}}", "lora.rank=4",
    ]  # fmt: skip
    arguments = [argument for setting in settings for argument in ("--set", setting)]
    plan = command("recipes/finetune_lora.py", *arguments, "--dry-run")
    assert "audio (audio)" in plan and re.search(r"\[100 × audio\]", plan) and "one step: loss" in plan


def test_files_go_to_codes_and_back(command, trained, media, sounds, tmp_path):
    """With the folder of tokenizers that a model is made from, and with the tokenizer alone."""
    folder, _ = trained
    coded = command("-m", "unimodal", "tokenize", sounds / "3.wav", "--out", tmp_path / "a.json", "--model", media)
    assert coded.strip() == f"{tmp_path / 'a.json'}: audio, 100 codes"
    command("-m", "unimodal", "detokenize", tmp_path / "a.json", "--out", tmp_path / "b.wav", "--model", folder)
    wanted, made = load_audio(sounds / "3.wav", 4000), load_audio(tmp_path / "b.wav", 4000)
    assert made.shape == wanted.shape and (made - wanted).square().mean() < 0.15 * wanted.square().mean()


def test_the_page_that_tells_how_is_itself_a_tokenizer(tmp_path, monkeypatch):
    """The example in CONTRIBUTING.md works as it stands there."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    section = page[page.index("## Add a tokenizer") : page.index("## Add a recipe")]
    [example] = [code for code in re.findall(r"```python\n(.*?)```", section, re.S) if "register(" in code]
    assert len(example.splitlines()) <= 80
    (tmp_path / "patches.py").write_text(example)
    monkeypatch.setenv("UNIMODAL_PLUGINS", str(tmp_path / "patches.py"))
    FAMILIES.pop("patches", None)  # the test of the page itself has run it
    from unimodal.tokenizers import find_family_class

    kind = find_family_class("patches")
    torch.manual_seed(0)
    tokenizer = kind(kind.config_class()).eval().round_to_half()
    x = torch.rand(2, 3, 32, 32)
    codes = tokenizer.encode(x)
    assert codes.ids.shape == (2, 64, 1) and tokenizer.decode(codes).shape == x.shape
    assert torch.equal(tokenizer.encode(x[:1]).row(0), codes.row(0))
    assert torch.equal(
        tokenizer.quantizer.to_ids(tokenizer.quantizer.to_values(torch.arange(1000))), torch.arange(1000)
    )
    loss, numbers = tokenizer.training_loss(x)
    loss.backward()
    assert set(numbers) == {"psnr"} and all(p.grad is not None for p in tokenizer.parameters())
    tokenizer.save(tmp_path / "patches")
    assert torch.equal(load_tokenizer(tmp_path / "patches").encode(x).ids, codes.ids)
    for wrong, said in ((torch.rand(1, 3, 30, 32), "takes pictures"), (torch.rand(3, 32, 32), "takes pictures")):
        with pytest.raises(ValueError, match=said):
            tokenizer.encode(wrong)
    with pytest.raises(ValueError, match="a picture is 64 codes"):
        tokenizer.decode(Codes.whole(torch.zeros(1, 9, dtype=torch.int64)))
    FAMILIES.pop("patches")


def test_a_plan_and_mistakes_of_training(sounds, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("UNIMODAL_PLUGINS", str(PLUGIN))
    ours = (f"media={sounds}", "family=my_sounds", f"out={tmp_path}/out", f"run={tmp_path}/run")
    recipe("train_tokenizer", *ours, flags=["--dry-run"])
    plan = capsys.readouterr().out
    assert "my_sounds: audio" in plan and re.search(r"a file becomes codes \([\d.]+ a second\) of [\d,]+ values", plan)
    assert re.search(r"a batch of [\d ×]+: loss [\d.]+, ", plan) and "{" not in plan
    counts = re.search(r"(\d+) files to train on, (\d+) held out", plan)
    assert counts is not None and sum(map(int, counts.groups())) == 20 and int(counts[2]) > 0
    assert not list(tmp_path.iterdir())

    def fails(*settings: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            recipe("train_tokenizer", *settings)
        assert stopped.value.code == 2
        *begun, line = capsys.readouterr().err.strip().splitlines()
        assert len(begun) in (0, 2) and all("trained parameters" in said or "held out" in said for said in begun)
        return line

    assert "no tokenizer family 'unheard'" in fails(f"media={sounds}", "family=unheard")
    assert "janus_reader is no tokenizer: it gives no codes" in fails(f"media={sounds}", "family=janus_reader")
    assert "tokenizer: width" in fails(*ours, "tokenizer.width=wide")
    assert "has no sound files" in fails(f"media={tmp_path}", "family=my_sounds")
    assert "not trained by a loss of its own" in fails(f"media={sounds}", "family=mel_fsq", f"run={tmp_path}/run")
    assert not (tmp_path / "out").exists()

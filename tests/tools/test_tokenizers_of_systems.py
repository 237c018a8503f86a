"""Published systems, from a folder or their authors' checkpoint, on the way to a language model and back to files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.campaigns import is_study
from tests.recipes.conftest import tiny_base  # noqa: F401 - the fixture
from tests.recipes.test_finetune_lora import recipe
from tests.tokenizers.released import build_small, clone_state, write_checkpoint
from tools import convert_checkpoint
from unimodal.cli.app import main
from unimodal.coder.media_coder import load_coder
from unimodal.export.card import Statement, make_card
from unimodal.pipeline import load
from unimodal.tokenizers import load_tokenizer

pytestmark = pytest.mark.sweep("tools at work")


def run(*arguments):
    convert_checkpoint.main([str(argument) for argument in arguments])


def test_settings_of_a_checkpoint_are_given_by_medium(tmp_path, capsys):
    tokenizer = build_small("titok-s128")
    settings = write_checkpoint(tokenizer, tmp_path / "safe")
    torch.save({"state_dict": clone_state(tokenizer)}, tmp_path / "titok.bin")
    checkpoint = ["--image", f"titok={tmp_path / 'titok.bin'}", "--set", f"image.config={settings}"]
    run("tokenizers", tmp_path / "media", *checkpoint, "--set", "image.pickle=true")
    made = load_tokenizer(tmp_path / "media" / "image_tokenizer")
    assert made.sha256 == tokenizer.sha256 and made.config.licence == "Apache-2.0"
    again = ["--image", f"titok={tmp_path / 'media' / 'image_tokenizer'}"]
    run("tokenizers", tmp_path / "again", *again)
    assert load_tokenizer(tmp_path / "again" / "image_tokenizer").sha256 == tokenizer.sha256
    capsys.readouterr()
    for more, said in [
        (checkpoint, "is a pickle; allow its bare tensors with pickle=True"),
        ([*checkpoint, "--set", "image.width=3"], "titok has no setting 'width'; it has config, pickle, torchscript"),
        ([*checkpoint, "--set", "audio.pickle=true"], "--set audio: write MEDIUM.NAME=VALUE"),
        ([*checkpoint, "--set", "image=3"], "--set image: write MEDIUM.NAME=VALUE"),
        ([*again, "--set", "image.pickle=true"], "is a saved tokenizer with its own settings; leave pickle out"),
        (["--image", again[1].partition("=")[2], "--set", "image.pickle=true"], "leave --set image"),
        (["--image", f"titok_latents={tmp_path / 'safe'}"], "gives continuous latents"),
    ]:
        with pytest.raises(SystemExit):
            run("tokenizers", tmp_path / "no", *more)
        [line] = capsys.readouterr().err.strip().splitlines()
        assert said in line, line
        assert not (tmp_path / "no").exists()


#: layouts of every kind: flat and split ids, several books, scales, a prefix, any size, frames
ROUTES = (
    "llamagen-vq16", "ibq-262144", "wetok-192", "unitok-large", "imagefolder-msvr10p2-4096", "titok-s128", "gigatok-ss",
    "cosmos-di-8x8", "tokenflow-siglip", "omnitokenizer", "cosmos-dv-4x8x8", "omnitokenizer-video",
    "open-magvit2-video", "flextok-d12-d12",
)  # fmt: skip
#: of these a model is trained for a step, and writes a medium
TRAINED = ("unitok-large", "omnitokenizer-video")


@pytest.mark.parametrize("system", ROUTES if is_study() else ROUTES[1:4:2] + ROUTES[4:6] + ROUTES[10:12])
def test_a_trained_system_is_one_command_from_a_language_model(system, tiny_base, tmp_path, capsys):  # noqa: F811
    tokenizer = build_small(system).round_to_half()
    tokenizer.save(tmp_path / "trained")
    medium = tokenizer.modality
    run("tokenizers", tmp_path / "media", f"--{medium}", tmp_path / "trained", "--fit", "crop")
    assert json.loads((tmp_path / "media" / "processor_config.json").read_text())["image_fit"] == "crop"
    file = write_medium(tokenizer, tmp_path)
    for folder in (tmp_path / "media", tmp_path / "trained"):
        coder = load_coder(folder)
        codes = coder.tokenize(file)
        made = coder.detokenize(codes)
        assert made.modality == medium and tuple(made.media.shape[-2:]) == tokenizer.picture_size
    asked = {"type": medium, "path": file.name}
    turns = [{"role": "user", "content": [asked, {"type": "text", "text": "what is it?"}]},
             {"role": "assistant", "content": "noise"}]  # fmt: skip
    (tmp_path / "data.jsonl").write_text("\n".join([json.dumps({"messages": turns})] * 6) + "\n")
    capsys.readouterr()
    settings = [
        f"base={tiny_base}", f"media={tmp_path}/media", f"out={tmp_path}/out", f"run={tmp_path}/run",
        f"corpus={{datasets: [{{path: {tmp_path}/data.jsonl}}], codes: {tmp_path}/codes, length: 1500, "
        "tokens_per_batch: 1500, validation_share: 0.3, batches_per_window: 1}",
        "lora.rank=4", "loop.steps=1", "loop.warmup_steps=1",
    ]  # fmt: skip
    recipe("finetune_lora", *settings, flags=["--dry-run"])
    plan = capsys.readouterr().out
    assert f"{medium} ({medium})" in plan and "one step: loss" in plan
    if system in TRAINED:
        recipe("finetune_lora", *settings)
        answer = load(tmp_path / "out", device="cpu").generate("noise", to=medium)
        assert tuple(answer.media.shape) == tuple(made.media.shape)


def test_the_licence_of_released_weights_stays_and_is_asked_for(tiny_base, tmp_path, capsys):  # noqa: F811
    tokenizer = build_small("imagefolder-msvr10p2-4096")
    settings = write_checkpoint(tokenizer, tmp_path / "released")
    released = ["--image", f"imagefolder={tmp_path}/released", "--set", f"image.config={settings}"]
    run("tokenizers", tmp_path / "media", *released)
    file = write_medium(tokenizer, tmp_path)
    row = {"messages": [{"role": "user", "content": [{"type": "image", "path": file.name}]},
                        {"role": "assistant", "content": "noise"}]}  # fmt: skip
    (tmp_path / "data.jsonl").write_text((json.dumps(row) + "\n") * 6)
    tuning = [
        f"base={tiny_base}", f"media={tmp_path}/media", f"out={tmp_path}/out", f"run={tmp_path}/run",
        f"corpus={{datasets: [{{path: {tmp_path}/data.jsonl}}], codes: {tmp_path}/codes, length: 1500, "
        "tokens_per_batch: 1500, validation_share: 0.3, batches_per_window: 1}",
        "lora.rank=4", "loop.steps=1", "loop.warmup_steps=1",
    ]  # fmt: skip
    said = ["push.repo=me/model", "push.license=other-name", "push.data=Noise."]
    with pytest.raises(SystemExit):  # before the training
        recipe("finetune_lora", *tuning, *said)
    assert "under Adobe Research License, which forbids commercial use" in capsys.readouterr().err
    recipe("finetune_lora", *tuning)
    main_of_cli("export", tmp_path / "out", "--out", tmp_path / "exported")
    fields = json.loads((tmp_path / "exported" / "image_tokenizer" / "config.json").read_text())
    assert (fields["licence"], fields["origin"], fields["commercial"]) == ("Adobe Research License", "released", False)
    push = ["push", tmp_path / "exported", "me/model", "--license", "mit", "--data", "Noise.", "--dry-run"]
    capsys.readouterr()
    assert main_of_cli(*push) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        "image_tokenizer has weights of released under Adobe Research License, which forbids commercial use" in line
        and '--accept-licence "Adobe Research License"' in line
    )
    assert main_of_cli(*push, "--accept-licence", "another") == 2
    assert main_of_cli(*push, "--accept-licence", "adobe research license") == 0
    card = make_card(tmp_path / "exported", "me/model", Statement("mit", (), "Noise."))
    told = "- `image_tokenizer`: weights of released, Adobe Research License; **not for commercial use**"
    assert card.count("## Licences of its tokenizers") == 1 and told in card
    (tmp_path / "exported" / "README.md").write_text("# Mine\n")
    kept = make_card(tmp_path / "exported", "me/model", Statement("mit", (), "Noise."))
    (tmp_path / "exported" / "README.md").write_text(kept)
    again = make_card(tmp_path / "exported", "me/model", Statement("mit", (), "Noise."))
    assert again.count(told) == 1 and "# Mine" in again
    assert main_of_cli("tokenizers", "show", tmp_path / "exported" / "image_tokenizer") == 0
    assert "Adobe Research License, not for commercial use" in capsys.readouterr().out


def main_of_cli(*arguments) -> int:
    """The status of a `unimodal` command."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return int(stopped.value.code or 0)


def write_medium(tokenizer, folder):
    """A file of noise that is wider than high."""
    generator = np.random.default_rng(0)
    if tokenizer.modality == "image":
        path = folder / "noise.png"
        Image.fromarray(generator.integers(0, 256, (40, 70, 3), dtype=np.uint8)).save(path)
        return path
    path = folder / "noise.gif"
    frames = [Image.fromarray(generator.integers(0, 256, (40, 70, 3), dtype=np.uint8)) for _ in range(24)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    return path

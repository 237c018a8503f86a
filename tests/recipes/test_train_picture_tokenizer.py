"""recipes/train_tokenizer.py on a system that is fitted to labels, begins from another and has its own test set."""

import pytest
import torch

from tests.recipes.test_finetune_lora import recipe
from unimodal.files import read_json
from unimodal.media.image import save_image
from unimodal.tokenizers import load_tokenizer


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Six things in two styles, one folder a thing, and two others to measure."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for number in range(8):
        place = folder / ("train" if number < 6 else "other") / f"thing{number}"
        place.mkdir(parents=True)
        for style in ("ink", "paint"):
            save_image(torch.rand(3, 32, 32, generator=generator), place / f"{style}.png")
    return folder


def train(tmp_path, pictures, *settings, name="a"):
    recipe(
        "train_tokenizer", "system=meaning-first-64", "small=true", f"media={pictures}/train", "batch_size=4",
        f"held_out={pictures}/other", "one_held_out_of=1000", "losses={l2: 0, root: 1}", f"run={tmp_path}/{name}_run",
        f"out={tmp_path}/{name}", "loop.steps=2", "loop.optimizer=muon", "loop.warmup_steps=0", "loop.plot=false",
        "loop.evaluate_every=2", "workers=0", *settings,
    )  # fmt: skip


def test_a_picture_tokenizer_is_fitted_to_labels_and_measured_on_media_of_its_own(tmp_path, pictures, capsys):
    train(tmp_path, pictures, f"labelled={pictures}/train")
    first = load_tokenizer(tmp_path / "a")
    assert first.meaning.fitted and read_json(tmp_path / "a" / "recipe.json")["held_out"]["psnr"] > 0
    capsys.readouterr()
    train(tmp_path, pictures, f"begin_from={tmp_path}/a", "loop.learning_rate=1e-12", name="b")
    names = first.state_dict()
    assert f"{len(names)} of {len(names)} weights are from" in capsys.readouterr().err
    again = load_tokenizer(tmp_path / "b").state_dict()
    assert all(torch.allclose(again[key].float(), value.float(), atol=1e-3) for key, value in names.items())


@pytest.mark.parametrize("setting", ["labelled", "begin_from"])
def test_what_a_system_does_not_do_is_told(tmp_path, pictures, capsys, setting):
    with pytest.raises(SystemExit):
        recipe(
            "train_tokenizer", "system=llamagen-vq16", "small=true", f"media={pictures}/train", "sizes=[32]",
            f"{setting}={pictures}/train", f"run={tmp_path}/run", f"out={tmp_path}/out", "loop.steps=1", "workers=0",
        )  # fmt: skip
    told = {"labelled": "fits nothing to labels; leave labelled out", "begin_from": "is not a tokenizer folder"}
    assert told[setting] in capsys.readouterr().err

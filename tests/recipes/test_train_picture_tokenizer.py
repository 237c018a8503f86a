"""recipes/train_tokenizer.py on a system that is fitted to labels, begins from another and has its own test set."""

import pytest
import torch

from tests.recipes.test_finetune_lora import recipe
from unimodal.files import read_json
from unimodal.media.image import save_image
from unimodal.media.video import save_video
from unimodal.tokenizers import hash_stored, load_tokenizer


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
    train(
        tmp_path,
        pictures,
        f"begin_from={tmp_path}/a",
        "loop.learning_rate=1e-12",
        "loop.final_learning_rate=0",
        name="b",
    )
    names = first.state_dict()
    assert f"{len(names)} of {len(names)} weights are from" in capsys.readouterr().err
    again = load_tokenizer(tmp_path / "b").state_dict()
    assert all(torch.allclose(again[key].float(), value.float(), atol=1e-3) for key, value in names.items())


def test_a_run_with_ids_of_known_things_goes_on(tmp_path, pictures, capsys):
    settings = f"labelled={pictures}/train", "tokenizer={num_known: 2, known_dims: 4}"
    train(tmp_path, pictures, *settings)
    first = load_tokenizer(tmp_path / "a")
    assert first.config.known == tuple(f"thing{number}" for number in range(6)) and first.tokens_per_item == 10
    train(tmp_path, pictures, *settings, "loop.steps=3")
    assert load_tokenizer(tmp_path / "a").config == first.config and "at step 2" in capsys.readouterr().err


def test_weights_in_8_bits_are_those_that_are_trained_with_and_measured(tmp_path, pictures, capsys):
    train(tmp_path, pictures, f"labelled={pictures}/train", name="plain")
    train(tmp_path, pictures, f"labelled={pictures}/train", "in_8_bits=[trunk., decoder.]")
    made, record = load_tokenizer(tmp_path / "a"), read_json(tmp_path / "a" / "recipe.json")
    assert record["weights_sha256"] == made.sha256 == hash_stored(tmp_path / "a")
    sizes = {name: (tmp_path / name / "model.safetensors").stat().st_size for name in ("a", "plain")}
    assert sizes["a"] < 0.75 * sizes["plain"]
    # the meaning codes are fitted to the rounded trunk: to be stored once more changes nothing
    kept = {name: value.clone() for name, value in made.state_dict().items()}
    made.round_to_8_bits(("trunk.", "decoder."))
    assert all(torch.equal(value, kept[name]) for name, value in made.state_dict().items())
    x = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    made.fit_to_labels((picture, str(number % 6)) for number, picture in enumerate(x))  # rounds its trunk to half
    assert all(torch.equal(value, kept[name]) for name, value in made.state_dict().items() if "trunk" in name)
    with pytest.raises(SystemExit):
        train(tmp_path, pictures, "in_8_bits=[trunks]", name="other")
    assert "in_8_bits: no weight begins with 'trunks'; there are decoder, encoder, meaning" in capsys.readouterr().err


def train_clips(tmp_path, media, *settings):
    shape = "{image_size: 32, width: 24, num_heads: 2, encoder_layers: 1, decoder_layers: 1, conv_channels: 16}"
    recipe(
        "train_tokenizer", "family=causal_motion_fsq", f"tokenizer={shape}", f"media={media}",
        "losses={l2: 0, root: 1}",
        f"run={tmp_path}/clips_run", f"out={tmp_path}/clips", "batch_size=2", "loop.steps=2", "loop.plot=false",
        "loop.evaluate_every=2", "workers=0", *settings,
    )  # fmt: skip


def test_clips_continue_a_picture_tokenizer_of_any_family(tmp_path, pictures, capsys):
    train(tmp_path, pictures, f"labelled={pictures}/train")
    generator = torch.Generator().manual_seed(0)
    (tmp_path / "films").mkdir()
    for number in range(4):
        save_video(torch.rand(9, 3, 32, 32, generator=generator), tmp_path / "films" / f"{number}.webp", 8.0)
    train_clips(tmp_path, tmp_path / "films", f"continued={tmp_path}/a", "one_held_out_of=3")
    made = load_tokenizer(tmp_path / "clips", image := load_tokenizer(tmp_path / "a"))
    assert made.config.image_tokenizer_sha256 == image.sha256
    assert read_json(tmp_path / "clips" / "recipe.json")["held_out"]["psnr"] > 0
    train(tmp_path, pictures, f"labelled={pictures}/train", "loop.seed=1", name="b")
    capsys.readouterr()
    train_clips(
        tmp_path, tmp_path / "films", f"continued={tmp_path}/b", f"begin_from={tmp_path}/clips", "one_held_out_of=3",
        "loop.learning_rate=1e-12", "loop.final_learning_rate=0", f"run={tmp_path}/next_run", f"out={tmp_path}/next",
    )  # fmt: skip
    again = load_tokenizer(tmp_path / "next", other := load_tokenizer(tmp_path / "b"))
    assert again.config.image_tokenizer_sha256 == other.sha256 != image.sha256
    names = made.state_dict()
    assert f"{len(names)} of {len(names)} weights are from" in capsys.readouterr().err
    assert all(torch.allclose(again.state_dict()[key], value, atol=1e-3) for key, value in names.items())
    for settings, said in (
        ([], "continues one of image; name its folder: continued=FOLDER"),
        ([f"continued={tmp_path}/clips"], "config.json is missing"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            train_clips(tmp_path, tmp_path / "films", *settings, f"run={tmp_path}/other")
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train(tmp_path, pictures, f"continued={tmp_path}/a", f"run={tmp_path}/other")
    assert "the meaning_first tokenizer continues no other; leave continued out" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["labelled", "begin_from"])
def test_what_a_system_does_not_do_is_told(tmp_path, pictures, capsys, setting):
    with pytest.raises(SystemExit):
        recipe(
            "train_tokenizer", "system=llamagen-vq16", "small=true", f"media={pictures}/train", "sizes=[32]",
            f"{setting}={pictures}/train", f"run={tmp_path}/run", f"out={tmp_path}/out", "loop.steps=1", "workers=0",
        )  # fmt: skip
    told = {"labelled": "fits nothing to labels; leave labelled out", "begin_from": "is not a tokenizer folder"}
    assert told[setting] in capsys.readouterr().err

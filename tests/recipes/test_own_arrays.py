"""Own media for the tokenizers of nano: what cannot be trained on is said at once, in one line, dry run or not."""

import json
import runpy
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from unimodal.training.command import Flags

ROOT = Path(__file__).resolve().parents[2]
CONCEPT = {"key": "1", "family": "1", "label": "apple", "tags": ["red"], "group": "fruit"}
CONCEPTS = [CONCEPT | {"id": 0, "split": "train"}, CONCEPT | {"id": 1, "split": "heldout"}]


@cache
def read_recipe(name):
    return runpy.run_path(str(ROOT / "recipes" / f"{name}.py"), run_name="imported")


def make_arrays(size=64, frames=9):
    return {
        "images": {
            "pixels": np.zeros((2, size, size, 3), np.uint8), "concept": np.array([0, 1], np.int32),
            "style": np.array(["noto", "noto"]),
        },
        "views": {"pixels": np.zeros((2, 1, size, size, 3), np.uint8), "features": np.zeros((2, 1, 1280), np.float16)},
        "clips": {"frames": np.zeros((2, frames, size, size, 3), np.uint8), "concept": np.array([0, 1], np.int32)},
    }  # fmt: skip


def write_arrays(folder, arrays, concepts=CONCEPTS):
    for name, found in arrays.items():
        np.savez(folder / f"{name}.npz", **found)
    (folder / "concepts.json").write_text(json.dumps(concepts))


PICTURES = {
    "views.npz is missing; make it with `python tools/prepare_views.py`": lambda a: a.pop("views"),
    "images.npz is missing; make it with `python tools/prepare_images.py`": lambda a: a.pop("images"),
    "images.npz: style 'photo' is unknown; call your own pictures noto, fluent3d, fluentflat":
        lambda a: a["images"].update(style=np.array(["noto", "photo"])),
    "images.npz has no array 'style'; it has pixels, concept": lambda a: a["images"].pop("style"),
    "images.npz: style has the shape [3], not [M=2]": lambda a: a["images"].update(style=np.array(["noto"] * 3)),
    "views.npz: pixels has the shape [2, 1, 128, 128, 3], not [M=2, V=1, 64, 64, 3]":
        lambda a: a["views"].update(pixels=np.zeros((2, 1, 128, 128, 3), np.uint8)),
    "views.npz: pixels holds float32, not uint8":
        lambda a: a["views"].update(pixels=np.zeros((2, 1, 64, 64, 3), np.float32)),
    "views.npz: features has the shape [2, 1, 512], not [M=2, V=1, 1280]":
        lambda a: a["views"].update(features=np.zeros((2, 1, 512), np.float16)),
    "images.npz: concept 7 is not in concepts.json, which has 2":
        lambda a: a["images"].update(concept=np.array([0, 7])),
    "images.npz shows no concept whose split is 'heldout'": lambda a: a["images"].update(concept=np.array([0, 0])),
    "images.npz shows no concept whose split is 'train'":
        lambda a: a["images"].update(style=np.array(["twemoji", "noto"])),
}  # fmt: skip


def check_refused(recipe, settings, message):
    """Both the dry run and the run itself, before anything is trained."""
    for dry_run in (True, False):
        with pytest.raises(ValueError) as caught:
            recipe["run"](settings, Flags(dry_run=dry_run))
        assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("message", PICTURES)
def test_pictures_that_cannot_be_trained_on(tmp_path, message):
    arrays = make_arrays()
    PICTURES[message](arrays)
    write_arrays(tmp_path, arrays)
    recipe = read_recipe("train_image_tokenizer")
    check_refused(recipe, recipe["ImageTokenizerRecipe"](data=tmp_path), message)


@pytest.mark.parametrize("size", [128, 60, 256])
def test_a_size_that_the_closed_form_does_not_take(tmp_path, size):
    recipe = read_recipe("train_image_tokenizer")
    settings = recipe["ImageTokenizerRecipe"](data=tmp_path, tokenizer={"image_size": size})
    check_refused(recipe, settings, f"tokenizer.image_size is {size}; ")


CLIPS = {
    "clips.npz is missing; make it with `python tools/prepare_clips.py`": lambda a: a.pop("clips"),
    "clips.npz: frames has the shape [2, 8, 64, 64, 3], not [C=2, 9, 64, 64, 3]":
        lambda a: a["clips"].update(frames=np.zeros((2, 8, 64, 64, 3), np.uint8)),
    "clips.npz: concept has the shape [1], not [C=2]": lambda a: a["clips"].update(concept=np.array([0])),
    "clips.npz shows no concept whose split is 'heldout'": lambda a: a["clips"].update(concept=np.array([0, 0])),
}  # fmt: skip


@pytest.mark.sweep
@pytest.mark.parametrize("message", CLIPS)
def test_clips_that_cannot_be_trained_on(tmp_path, message):
    arrays = make_arrays()
    CLIPS[message](arrays)
    write_arrays(tmp_path, arrays)
    recipe = read_recipe("train_video_tokenizer")
    settings = recipe["VideoTokenizerRecipe"](
        data=tmp_path, image_tokenizer=ROOT / "model_cards" / "nano" / "image_tokenizer"
    )
    check_refused(recipe, settings, message)


UTTERANCE = {"id": "u0", "text": "an apple", "voice": "me", "split": "train", "start": 0, "num_samples": 100}
SPEECH = {
    "utterance 'u0' holds 'П', which is not among the characters": {"text": "Привет"},
    "utterance 'u0' holds 'ü', which is not among the characters": {"text": "grün"},
    "utterance 'u0' holds 'A', which is not among the characters": {"text": "Apple"},
    "audio.int16 has 1,000 samples, but utterance 'u0' is samples 950 to 1,050": {"start": 950},
    "utterances.json has no utterance whose split is 'train'": {"split": "test"},
    "utterances.json: 0.num_samples: ": {"num_samples": None},
}


@pytest.mark.parametrize("message", SPEECH)
def test_speech_that_cannot_be_trained_on(tmp_path, message):
    np.zeros(1000, np.int16).tofile(tmp_path / "audio.int16")
    (tmp_path / "utterances.json").write_text(json.dumps([UTTERANCE | SPEECH[message]]))
    recipe = read_recipe("train_audio_tokenizer")
    check_refused(recipe, recipe["AudioTokenizerRecipe"](data=tmp_path), message)


def test_texts_of_any_alphabet_are_read_where_nothing_is_spelled(tmp_path, capsys):
    np.zeros(1000, np.int16).tofile(tmp_path / "audio.int16")
    (tmp_path / "utterances.json").write_text(json.dumps([UTTERANCE | {"text": "Привет"}]))
    recipe = read_recipe("train_audio_tokenizer")
    recipe["run"](recipe["AudioTokenizerRecipe"](data=tmp_path, ctc_weight=0.0), Flags(dry_run=True))
    assert "h of training speech" in capsys.readouterr().err
    batches = recipe["SpeechBatches"](recipe["Speech"](tmp_path, spelled=False), [0], 1, 4.0, 0)
    assert batches.next_batch()["text_lengths"].tolist() == [0]
    (tmp_path / "audio.int16").unlink()
    check_refused(recipe, recipe["AudioTokenizerRecipe"](data=tmp_path), "audio.int16 is missing; make it with")


def test_views_of_other_pictures_are_refused(tmp_path):
    arrays = make_arrays()
    arrays["views"]["source_sha256"] = np.array("0" * 64)
    write_arrays(tmp_path, arrays)
    recipe = read_recipe("encode_media")
    settings = recipe["EncodeRecipe"](data=tmp_path, models=ROOT / "model_cards" / "nano", clips=False, speech=False)
    said = "views.npz holds views of other pictures than images.npz; run `python tools/prepare_views.py` again"
    with pytest.raises(ValueError, match=said):
        recipe["run"](settings, False)
    recipe = read_recipe("train_image_tokenizer")
    check_refused(recipe, recipe["ImageTokenizerRecipe"](data=tmp_path), said)
    del arrays["views"]["source_sha256"]
    arrays["views"]["pixels"] = arrays["views"]["pixels"][:1]
    write_arrays(tmp_path, arrays)
    with pytest.raises(ValueError, match=r"views.npz: pixels has the shape \[1, "):
        read_recipe("encode_media")["run"](settings, False)


def test_codes_of_an_array_are_as_many_of_each_and_others_are_refused(tmp_path):
    recipe, media = read_recipe("encode_media"), tmp_path / "media.npz"
    media.write_bytes(b"media")

    def encode(counts, **more):
        rows = [np.full((count, 2), count, np.int32) for count in counts]
        job = recipe["Job"](
            tmp_path / "codes.npz", media, len(rows), SimpleNamespace(sha256="ab" * 32), lambda part: rows, **more
        )
        recipe["encode_all"](job)
        return np.load(tmp_path / "codes.npz")

    with pytest.raises(ValueError, match="becomes 2 to 4 codes an item"):  # six codes are no two items of three
        encode([2, 4])
    assert not (tmp_path / "codes.npz").exists()
    assert encode([2, 4], stacked=False)["offsets"].tolist() == [0, 2, 6]
    (tmp_path / "codes.npz").unlink()
    assert encode([3, 3, 3, 3], views=2)["codes"].shape == (2, 2, 3, 2)

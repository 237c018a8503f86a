"""Which systems are compared, and on which files."""

import argparse
import random
import struct
from pathlib import Path

import numpy as np
import pytest

from tools import compare_systems, prepare_comparison
from unimodal.data.media_items import FileItems, is_held_out
from unimodal.tokenizers.configs.registry import build_tokenizer, merge_settings, read_system

pytestmark = pytest.mark.sweep("tools at work")


@pytest.mark.parametrize("medium", ["image", "audio", "video"])
def test_one_system_of_each_kind_is_compared(medium):
    chosen = compare_systems.choose_systems(medium)
    kinds = [(read_system(name).system, read_system(name).choose_settings(small=True)["family"]) for name in chosen]
    assert len(set(kinds)) == len(kinds) > 1


def test_what_is_compared_on_is_what_the_recipe_holds_out(tmp_path):
    media = tmp_path / "media"
    for number in range(40):
        (media / str(number % 2)).mkdir(parents=True, exist_ok=True)
        (media / str(number % 2) / f"{number}.png").write_bytes(b"a")
    kept = compare_systems.keep_held_out(media, "image", tmp_path / "held")
    items = FileItems(media, "image")
    wanted = {items.find_group(index) for index in range(40) if is_held_out(items.find_group(index), 10)}
    assert {path.relative_to(kept).as_posix() for path in kept.rglob("*.png")} == wanted and wanted


@pytest.mark.parametrize("system", compare_systems.CHANGED)
def test_what_is_changed_of_a_system_is_a_setting_that_it_has(system):
    kind = read_system(system)
    changed = compare_systems.CHANGED[system]
    tokenizer = build_tokenizer(merge_settings(kind.choose_settings(small=True), changed.get("tokenizer", {})))
    assert tokenizer.sample_rate_hz >= 16_000 or "tokenizer" not in changed


def test_settings_are_those_of_the_recipe():
    recipe = compare_systems.load_recipe()
    asked = argparse.Namespace(
        medium="image", media=Path("photos"), size=32, batch=None, learning_rate=1e-3, seconds=45
    )
    cfg = recipe.TokenizerRecipe.model_validate(compare_systems.make_settings(asked, "titok-b64", Path("a"), 1, 32))
    assert cfg.small and cfg.sizes == (32,) and cfg.batch_size == 16 and cfg.processor_s == 45


def test_notes_are_read_from_a_sound_font(tmp_path):
    waves = [np.arange(number, dtype="<i2") for number in (5, 7)]

    def chunk(name: bytes, data: bytes) -> bytes:
        return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)

    heads, start = b"", 0
    for name, wave in zip((b"flute", b"drum"), waves, strict=True):
        heads += struct.pack("<20sIIIIIBbHH", name, start, start + len(wave), 0, 0, 22050, 60, 0, 0, 1)
        start += len(wave)
    heads += struct.pack("<20sIIIIIBbHH", b"EOS", 0, 0, 0, 0, 0, 0, 0, 0, 0)
    body = chunk(b"LIST", b"sdta" + chunk(b"smpl", np.concatenate(waves).tobytes()))
    body += chunk(b"LIST", b"pdta" + chunk(b"shdr", heads))
    (tmp_path / "a.sf2").write_bytes(chunk(b"RIFF", b"sfbk" + body))
    found = list(prepare_comparison.read_notes(tmp_path / "a.sf2"))
    assert [(each.name, each.rate_hz) for each in found] == [("flute", 22050), ("drum", 22050)]
    assert all(np.array_equal(found[number].wave, wave) for number, wave in enumerate(waves))


def test_the_two_halves_of_a_stereo_note_are_never_in_train_and_probe():
    names = ["harp(L)", "drum", "harp(R)", "Strings G6 L", "oboe 4R", "Strings G6 R", "oboe 4L", "Power Bass Drum 1(R"]
    assert [prepare_comparison.CHANNEL.sub("", name) for name in names] == [
        "harp", "drum", "harp", "Strings G6", "oboe 4", "Strings G6", "oboe 4", "Power Bass Drum 1",
    ]  # fmt: skip
    wave = np.zeros(4, dtype=np.int16)
    for order in range(9):
        random.Random(order).shuffle(names)
        found = [
            prepare_comparison.Recording(name, prepare_comparison.CHANNEL.sub("", name), wave, 8) for name in names
        ]
        parts = prepare_comparison.split_sources(found, 2)
        probe, train = ({each.source for _, each in parts[part]} for part in ("probe", "train"))
        assert len(parts["probe"]) == len(probe) == 2 and not probe & train and len(probe | train) == 5
        assert all(found[number] is each for part in parts.values() for number, each in part)


def test_a_later_comparison_at_the_same_settings_adds_to_the_first(tmp_path, monkeypatch):
    compared = []

    def train(asked, name, folder, seed):
        folder.mkdir()
        return {"failed": "", "steps": 3, "decodes": name != "beats"}

    monkeypatch.setattr(compare_systems, "train_apart", train)
    monkeypatch.setattr(compare_systems, "compare", lambda asked, found, part: compared.append((part, sorted(found))))
    for more in (
        ["--systems", "mimi"],
        ["--systems", "beats", "dac-16", "--seeds", "2"],
        ["--systems", "mimi", "--seconds", "9"],
    ):
        monkeypatch.setattr(
            "sys.argv", ["compare_systems", "audio", str(tmp_path), "--out", str(tmp_path / "out"), *more]
        )
        compare_systems.main()
    assert compared == [
        ("reconstruction", ["mimi"]),
        ("reconstruction", ["dac-16", "dac-16-seed1", "mimi"]),
        ("reconstruction", ["mimi"]),  # of other seconds: the others stand for nothing beside it
    ]

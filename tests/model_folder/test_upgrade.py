"""An older folder is read as it was meant, and `unimodal upgrade` writes that meaning down: whole or not at all."""

import json
import os
import shutil

import pytest

from tests.tiny_model import NANO_WORDING, tiny_folder
from unimodal.cli.app import main
from unimodal.model_folder.find import list_default_folders
from unimodal.model_folder.formats import FORMAT
from unimodal.model_folder.settings import CtcReading, MediumLimits, ProcessorConfig, read_processor
from unimodal.model_folder.upgrade import apply_upgrade, plan_upgrade

SETTINGS = "processor_config.json"
#: as the files of the first released folders were written
RELEASED = {
    "processor_class": "UnimodalProcessor", "image_fit": "pad", "max_audio_s": 5.0, "history_turns": 0,
    "wording": {"voices": ["joe"]}, "reading": {"modality": "audio", "blank": "<|pad|>", "sayings": 8},
}  # fmt: skip
NOT_YET = {"letters": "", "numerals": "", "breath": None}  # what a folder of the first format could not say
NANOS_OWN = NANO_WORDING.model_copy(update={"voices": ("joe",), **NOT_YET})


@pytest.fixture
def folder(tmp_path):
    """A model folder of the first format, all but its settings linked."""
    for path in tiny_folder().iterdir():
        if path.name != SETTINGS:
            os.symlink(path, tmp_path / path.name)
    (tmp_path / SETTINGS).write_text(json.dumps(RELEASED))
    return tmp_path


def upgrade(*words, capsys):
    """(status, lines of stdout, stderr)"""
    with pytest.raises(SystemExit) as stop:
        main(["upgrade", *map(str, words)])
    shown = capsys.readouterr()
    return stop.value.code or 0, shown.out.splitlines(), shown.err


def test_an_older_folder_is_read_as_it_was_meant(folder):
    assert read_processor(folder) == ProcessorConfig(
        limits={"audio": MediumLimits(seconds=5.0, codes=250)}, history_turns=0, wording=NANOS_OWN,
        reading=CtcReading(sayings=8),
    )  # fmt: skip
    (folder / SETTINGS).unlink()
    meant = read_processor(folder)
    assert meant.limits == {"audio": MediumLimits(seconds=8.0, codes=250)} and meant.history_turns is None
    assert meant.wording == NANO_WORDING.model_copy(update={"voices": (), **NOT_YET}) and meant.reading is None


def test_a_medium_without_a_question_had_one(folder):
    (folder / SETTINGS).write_text(json.dumps({"wording": {"questions": {"image": "Describe it."}}}))
    assert read_processor(folder).wording.questions == {
        "image": "Describe it.", "audio": "What is this?", "video": "What is this?"
    }  # fmt: skip


def test_what_is_left_out_today_is_neutral(folder):
    (folder / SETTINGS).write_text(json.dumps({"format": FORMAT}))
    neutral = read_processor(folder)
    assert neutral == ProcessorConfig() and neutral.limits == {} and neutral.wording.wishes == {}
    assert neutral.system == "" and neutral.wording.ask("image") == ""


def test_an_upgrade_writes_the_meaning_down_and_does_nothing_twice(folder, capsys):
    meant, before = read_processor(folder), (folder / SETTINGS).read_bytes()
    status, lines, _ = upgrade(folder, "--dry-run", capsys=capsys)
    assert status == 0 and (folder / SETTINGS).read_bytes() == before
    [line] = lines
    assert line.startswith(f"{SETTINGS}: format 1 → {FORMAT}; now says ") and "limits" in line and "wording" in line

    assert upgrade(folder, capsys=capsys)[:2] == (0, lines)
    written = json.loads((folder / SETTINGS).read_text())
    assert written["format"] == FORMAT and "max_audio_s" not in written
    assert ProcessorConfig.model_validate(written) == meant == read_processor(folder)

    after = (folder / SETTINGS).read_bytes()
    status, [line], _ = upgrade(folder, capsys=capsys)
    assert status == 0 and line == f"{folder} is up to date; there is nothing to do"
    assert (folder / SETTINGS).read_bytes() == after


def test_a_folder_without_settings_gets_them(folder):
    (folder / SETTINGS).unlink()
    meant = read_processor(folder)
    apply_upgrade(plan_upgrade(folder))
    assert read_processor(folder) == meant and json.loads((folder / SETTINGS).read_text())["format"] == FORMAT


def test_what_transformers_wrote_beside_the_settings_stays(folder):
    (folder / SETTINGS).write_text(json.dumps({**RELEASED, "auto_map": {"AutoProcessor": "a.B"}}))
    apply_upgrade(plan_upgrade(folder))
    assert json.loads((folder / SETTINGS).read_text())["auto_map"] == {"AutoProcessor": "a.B"}
    assert read_processor(folder).limits == {"audio": MediumLimits(seconds=5.0, codes=250)}


@pytest.mark.parametrize("broken_at", [0, 1])
def test_a_full_disk_leaves_every_file_as_it_was(folder, monkeypatch, broken_at):
    """Of two files that change, the first or the second cannot take its place."""
    [change] = plan_upgrade(folder)
    other = type(change)(folder / "new.json", {"a": 1}, "made for this test")
    before, replace, count = (folder / SETTINGS).read_bytes(), os.replace, 0

    def fail(source, target):
        nonlocal count
        count += 1
        if count == broken_at + 1:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        apply_upgrade([change, other])
    names = {path.name for path in tiny_folder().iterdir()}
    assert {path.name for path in folder.iterdir()} == names and (folder / SETTINGS).read_bytes() == before


def test_what_cannot_be_upgraded_is_one_line(folder, tmp_path_factory, capsys):
    empty = tmp_path_factory.mktemp("empty")
    linked = tmp_path_factory.mktemp("linked")
    for path in folder.iterdir():
        os.symlink(path, linked / path.name)
    newer = tmp_path_factory.mktemp("newer")
    shutil.copyfile(tiny_folder() / "vocabulary.json", newer / "vocabulary.json")
    (newer / SETTINGS).write_text(json.dumps({"format": FORMAT + 1, "unheard_of": 1}))
    spoilt = tmp_path_factory.mktemp("spoilt")
    shutil.copyfile(tiny_folder() / "vocabulary.json", spoilt / "vocabulary.json")
    (spoilt / SETTINGS).write_text(json.dumps({**RELEASED, "max_audio_s": -1}))
    for place, message in (
        (empty / "nowhere", "is not a folder"),
        (empty, "is not a model folder: vocabulary.json is missing"),
        (newer, f"is of format {FORMAT + 1} and this unimodal reads up to {FORMAT}; install a newer unimodal"),
        (linked, "is a link out of the folder"),
        (spoilt, "limits.audio.seconds: Input should be greater than 0"),
    ):
        status, lines, error = upgrade(place, capsys=capsys)
        assert status == 2 and lines == [] and message in error and len(error.splitlines()) == 1, place
    with pytest.raises(ValueError, match="install a newer unimodal"):
        read_processor(newer)


def test_the_released_folders_are_of_the_newest_format():
    released = [path.parent for path in list_default_folders()[0].parent.glob("*/vocabulary.json")]
    assert {"nano", "nano2", "smol"} <= {folder.name for folder in released}
    for folder in released:
        assert plan_upgrade(folder) == []
        longest = (
            MediumLimits(seconds=6.0, codes=340) if folder.name == "nano2" else MediumLimits(seconds=5.0, codes=250)
        )
        assert read_processor(folder).limits == {"audio": longest}
        wording = read_processor(folder).wording
        if folder.name == "nano2":  # it is asked for sounds, too
            assert {*NANO_WORDING.wish_starts["audio"]} < {*wording.wish_starts["audio"]}
            wording = wording.model_copy(update={"wish_starts": NANO_WORDING.wish_starts})
        assert wording == NANO_WORDING

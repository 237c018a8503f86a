"""The tools that prepare scenes and sounds: what they write is deterministic, split as it says, and can be read."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tools import pack_voices, prepare_scenes, prepare_sounds
from unimodal.data.datasets import DatasetConfig, open_dataset
from unimodal.data.named_sounds import EncodedSounds, NameToSound, SoundToName, read_sounds
from unimodal.data.scenes.scene import SPLITS, has_held_out, read_scenes, read_things

LABELS = (
    "cat",
    "owl",
    "fox",
    "cup",
    "bell",
    "drum",
    "key",
    "tent",
    "boat",
    "kite",
    "red cup",
    "glasses",
    "leaf",
    "pear",
)


def draw_emoji(number):
    def draw(key, label):
        picture = Image.new("RGBA", (80, 60), (0, 0, 0, 0))
        box = (10, 5, 70, 55)
        colour = (40 * (number + len(label)) % 200, 90, 150, 255)
        (ImageDraw.Draw(picture).ellipse if len(label) % 2 else ImageDraw.Draw(picture).rectangle)(box, colour)
        return picture

    return draw


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    pytest.importorskip("resvg_py")
    folder = tmp_path_factory.mktemp("scenes")
    raw, out = folder / "raw", folder / "prepared"
    art = raw / "openclipart-svg/usr/share/openclipart/svg/animals"
    art.mkdir(parents=True)
    body = '<circle cx="9" cy="9" r="9" fill="#c03020"/>'
    for name, title in {"a": "Bee_2", "b": "Cat (b and w)", "c": "Nobody's thing"}.items():
        begin = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:dc="d" viewBox="0 0 18 18">'
        (art / f"{name}.svg").write_text(f"{begin}<dc:title>{title}</dc:title>{body}</svg>")
    index = raw / "wordnet-base/usr/share/wordnet/index.noun"
    index.parent.mkdir(parents=True)
    index.write_text("  1 licence\nbee n 1\ncat n 1\n")
    out.mkdir()
    concepts = [
        {"id": i, "key": f"1f{i:03}", "family": f"1f{i:03}", "label": label, "tags": [], "group": "objects",
         "split": "heldout" if i in (3, 4) else "train"}
        for i, label in enumerate(LABELS)
    ]  # fmt: skip
    concepts.append(
        {**concepts[3], "id": len(LABELS), "key": "1fbee", "family": "1fbee", "label": "bee", "group": "symbols"}
    )
    (out / "concepts.json").write_text(json.dumps(concepts))
    return raw, out


def run_tool(folders, monkeypatch, *more):
    styles = {name: draw_emoji(i) for i, name in enumerate(("noto", "fluent3d", "twemoji"))}
    monkeypatch.setattr(prepare_scenes, "open_emoji_styles", lambda raw: styles)
    raw, out = folders
    prepare_scenes.main(["--raw", str(raw), "--out", str(out), *more])


def test_scenes_are_written_as_their_split_says(folders, monkeypatch):
    run_tool(folders, monkeypatch, "--pictures", "30", "--clips", "2", "--test", "5")
    folder = folders[1] / "scenes"
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    run_tool(folders, monkeypatch, "--pictures", "30", "--clips", "2", "--test", "5")
    assert first == {path.name: path.read_bytes() for path in folder.iterdir()}
    things, split = read_things(folder / "things.json"), json.loads(first["split.json"])
    names = {thing.name: thing for thing in things}
    assert {"cat", "bee", "circle"} <= set(names) and not {"red cup", "glasses"} & set(names)  # a colour; a plural
    assert split["things"] == ["bee", "bell", "cup"] and split["styles"] == ["twemoji"]
    sprites = np.load(folder / "sprites.npz")
    cats = sprites["style"][sprites["thing"] == names["cat"].id]
    assert set(cats) == {"noto", "fluent3d", "twemoji", "clipart"}  # clip art of its name belongs to it
    for kind, arrays, side in (("scenes", "pixels", 3), ("moves", "frames", 4)):
        scenes, pixels = read_scenes(folder / f"{kind}.jsonl"), np.load(folder / f"{kind}.npz")[arrays]
        assert len(scenes) == len(pixels) and pixels.ndim == side + 1 and {scene.split for scene in scenes} == {*SPLITS}
        for scene in scenes:
            shown = [(things[one.thing], str(sprites["style"][one.sprite])) for one in scene.things]
            assert all((thing.split == "heldout") == (scene.split == "concept") for thing, _ in shown)
            assert all((style == "twemoji") == (scene.split == "style") for _, style in shown)
            assert has_held_out(scene, things) == (scene.split == "combination")
    assert set(json.loads(first["manifest.json"])) == {*first} - {"manifest.json"}


def test_a_folder_of_scenes_is_a_dataset(folders, monkeypatch, tmp_path):
    run_tool(folders, monkeypatch, "--pictures", "4", "--clips", "1", "--folder", str(tmp_path / "look"))
    documents = open_dataset(DatasetConfig(path=str(tmp_path / "look" / "data.jsonl")))
    assert len(documents) == 5 and not documents.bad_rows
    assert [documents[i].parts[0].modality for i in (0, 4)] == ["image", "video"]


@pytest.mark.parametrize("tool", [prepare_scenes, prepare_sounds])
def test_missing_packages_are_one_line(tool, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        tool.main(["--raw", str(tmp_path), "--out", str(tmp_path)])
    assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1


class Synth:
    """In place of tinysoundfont: a sine for each note; piccolos cannot play low ones."""

    def __init__(self, samplerate):
        self.rate, self.program, self.key = samplerate, 0, 0

    def sfload(self, path):
        return 1

    def program_select(self, channel, font, bank, program):
        self.program = program

    def sounds_off(self):
        pass

    def noteon(self, channel, key, velocity):
        self.key = key

    def noteoff(self, channel, key):
        pass

    def generate(self, count):
        loud = 0.0 if self.program == 72 and self.key < 60 else 0.5
        return np.repeat(loud * np.sin(np.arange(count) * 0.06 * self.key), 2).astype(np.float32).tobytes()


def test_sounds_have_names_and_what_is_held_out_is_not_in_training(tmp_path, monkeypatch):
    import soundfile

    raw, out = tmp_path / "raw", tmp_path / "out"
    samples = raw / "supersonic-scsynth-samples/package/samples"
    samples.mkdir(parents=True)
    for stem in ("misc_crow", "hat_a", "hat_b", "hat_c", "hat_d"):
        soundfile.write(samples / f"{stem}.flac", np.sin(np.arange(4000) * 0.2) * 0.3, 44_100)
    font = raw / prepare_sounds.SOUND_FONT
    font.parent.mkdir(parents=True)
    font.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "tinysoundfont", SimpleNamespace(Synth=Synth))
    monkeypatch.setattr(prepare_sounds, "INSTRUMENTS", {72: "piccolo", 73: "flute"})
    prepare_sounds.main(["--raw", str(raw), "--out", str(out), "--files", str(tmp_path / "files")])
    sounds = read_sounds(out / "sounds")
    audio = np.fromfile(out / "sounds" / "audio.int16", np.int16)
    assert sounds[-1].start + sounds[-1].num_samples == len(audio)
    assert all(np.abs(audio[one.start : one.start + one.num_samples]).max() > 9_000 for one in sounds)
    files = {path.stem: soundfile.read(path, dtype="int16")[0] for path in (tmp_path / "files").iterdir()}
    assert files.keys() == {one.id for one in sounds if one.split == "train"}
    assert all(np.array_equal(files[s.id], audio[s.start : s.start + s.num_samples]) for s in sounds if s.id in files)
    effects = [one for one in sounds if one.kind == "effect"]
    assert {one.name for one in effects} == {"crow", "hi-hat"} and len(effects) == 5 * prepare_sounds.VARIANTS
    [whole] = {one.sample for one in effects if one.split == "sample"}
    assert whole.startswith("hat") and all(one.split == "sample" for one in effects if one.sample == whole)
    notes = [one for one in sounds if one.kind == "note"]
    assert {one.note for one in notes if one.sample == "piccolo"} == {f"{t}{o}" for t in "CDEFGAB" for o in (4, 5)}
    trained = {(one.sample, one.note) for one in notes if one.split == "train"}
    unheard = {(one.sample, one.note) for one in notes if one.split == "combination"}
    assert unheard and not trained & unheard
    encoded = EncodedSounds(np.arange(3 * len(sounds)), np.arange(len(sounds) + 1) * 3, sounds)
    for source in (SoundToName(encoded), NameToSound(encoded)):
        for item in range(0, len(source), 9):
            document, sound = source.make_document(item, 2), encoded.get_sound(item)
            words = " ".join(turn.text for turn in document.turns).lower()
            assert sound.source in words and sound.note.lower() in words and sound.split == "train"
            [part] = [part for part in document.parts if hasattr(part, "codes")]
            assert part.codes.tolist() == encoded.get_codes(item).tolist()
    known = {sound.source for sound in sounds}
    assert sounds[0].is_named_by("a hi-hat!", known) and not sounds[-1].is_named_by("a piccolo", known)


def test_voices_are_packed_as_speech(tmp_path, capsys):
    import soundfile

    for number, place in enumerate(("train/slt/1", "train/slt-worn/2", "test/awb/3", "human/human/one")):
        path = tmp_path / "voices" / f"{place}.wav"
        path.parent.mkdir(parents=True)
        soundfile.write(path, np.full(100 + number, 0.1 * number), 16_000, subtype="PCM_16")
        path.with_suffix(".txt").write_text(f"text {number}\n")
    for name in ("asterisk-fr/a.wav", "slt/.1-part.wav"):  # no text; what an interrupted writing left
        path = tmp_path / "voices" / "train" / name
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, np.zeros(100), 16_000, subtype="PCM_16")
    pack_voices.main(["--voices", str(tmp_path / "voices"), "--out", str(tmp_path / "speech")])
    assert "1 clips without a text are left out" in capsys.readouterr().err
    prepared = load_prepared_speech(tmp_path)
    found = {(one.text, one.voice, one.split, one.num_samples) for one in prepared.utterances}
    assert found == {
        ("text 0", "slt", "train", 100), ("text 1", "slt", "train", 101), ("text 2", "awb", "test", 102),
        ("text 3", "human", "human", 103),
    }  # fmt: skip
    for one in prepared.utterances:
        assert float(prepared.take(one).mean()) == pytest.approx(0.1 * int(one.text[-1]), abs=1e-3)
    pack_voices.main(["--voices", str(tmp_path / "voices"), "--out", str(tmp_path / "speech"), "--skip-worn"])
    assert len(load_prepared_speech(tmp_path).utterances) == 3
    with pytest.raises(SystemExit):
        pack_voices.main(["--voices", str(tmp_path / "none"), "--out", str(tmp_path / "other")])
    assert "make them with `python tools/make_voices.py speak`" in capsys.readouterr().err


def load_prepared_speech(folder):
    from unimodal.evaluation.prepared import Speech

    return Speech.load(folder)

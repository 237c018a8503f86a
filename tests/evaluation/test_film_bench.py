"""The bench of films: one run, with what the first frame alone would give."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from unimodal.evaluation.tokenizer_bench import film_bench, film_codecs, timing
from unimodal.evaluation.tokenizer_bench.entries import Entry, open_entries
from unimodal.evaluation.tokenizer_bench.picture_judges import PictureJudge
from unimodal.evaluation.tokenizer_bench.run import run_bench
from unimodal.evaluation.tokenizer_bench.settings import BenchSettings
from unimodal.evaluation.tokenizer_bench.write import write_bench
from unimodal.media.video import save_video
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system


def build_small(system):
    torch.manual_seed(0)
    return build_tokenizer(read_system(system).choose_settings(small=True)).eval()


class ColourJudge(PictureJudge):
    """In place of networks that are packages of their own."""

    name = "lite2"

    def compute(self, pictures):
        return torch.nn.functional.normalize(pictures.mean((2, 3)) + 0.1, dim=1)


class NoMaps(torch.nn.Module):
    def forward(self, x):
        return [x.flatten(2)]


def test_films_are_judged_frame_by_frame_beside_their_first_frame(tmp_path, monkeypatch):
    monkeypatch.setattr(film_bench, "open_judges", lambda folders: [ColourJudge()])
    monkeypatch.setattr("unimodal.evaluation.tokenizer_bench.pictures.EfficientNetFeatures", NoMaps)
    monkeypatch.setattr(timing, "BATCHES", (1, 2))
    monkeypatch.setattr(timing, "TIMED_RUNS", 1)
    films = tmp_path / "films"
    films.mkdir()
    moving = torch.rand(1, 3, 40, 48).repeat(9, 1, 1, 1)
    save_video(torch.stack([torch.roll(frame, 5 * step, 2) for step, frame in enumerate(moving)]), films / "a.mp4", 8)
    save_video(moving, films / "b.mp4", 8)
    (films / "broken.mp4").write_bytes(b"no film")
    entries = [Entry(name, build_small(name)) for name in ("moto", "omnitokenizer-video")]
    made = run_bench(entries, BenchSettings(films, tmp_path / "parts"), lambda *_: None)
    assert made.data["items"] == 2 and len(made.data["left_out"]) == 1
    for entry in entries:
        speed = made.tokenizers[entry.label]["speed"]
        assert speed["encode_ms_batch_2"] > 0 and speed["decode_peak_mb"] > 0
        [rate] = made.tokenizers[entry.label]["rates"]
        assert rate["codes"] == entry.tokenizer.tokens_per_item
        assert rate["bytes"] == pytest.approx(entry.count_bits(entry.tokenizer.tokens_per_item) / 8, abs=1e-3)
        assert rate["bits_per_second"] > 0 and rate["psnr_db"]["mean"] > 0 and "distance_lite2" in rate
    rates = made.codecs["still"]["rates"]
    assert [rate["frames_of"] for rate in rates] == ["moto", "omnitokenizer-video"]
    for codec in film_codecs.CODECS:
        rates = made.codecs[codec]["rates"]
        assert [rate["budget_bytes"] for rate in rates] == sorted(
            figures["rates"][0]["bytes"] for figures in made.tokenizers.values()
        )
        assert all(
            rate["bytes"] > 0 and rate["psnr_db"]["mean"] > 0 and 0 <= rate["within_budget"] <= 1 for rate in rates
        )
    table = write_bench(made, tmp_path / "out.json")
    assert "video: 2 items" in table and "still" in table and "broken.mp4" in table
    assert (tmp_path / "out.png").is_file() and json.loads((tmp_path / "out.json").read_text())["medium"] == "video"
    monkeypatch.setattr(film_bench.FilmBench, "_read", None)  # all is measured
    assert run_bench(entries, BenchSettings(films, tmp_path / "parts"), lambda *_: None).to_dict() == made.to_dict()


@pytest.mark.parametrize("codec", film_codecs.CODECS)
def test_a_codec_takes_the_finest_quality_within_its_bytes_and_gives_back_every_frame(codec):
    frame = torch.nn.functional.interpolate(torch.rand(1, 3, 8, 8), (33, 40), mode="bilinear")[0]
    film = torch.stack([torch.roll(frame, 2 * step, 2) for step in range(5)])
    coder = film_codecs.FilmCoder(codec, film, 8.0)
    poor, some, rich = (coder.choose_within(budget) for budget in (1, 700, 1e6))
    assert poor.num_bytes > 1 and poor.num_bytes < some.num_bytes <= 700 < rich.num_bytes
    errors = [float((coded.frames - film).square().mean()) for coded in (poor, some, rich)]
    assert poor.frames.shape == film.shape and errors[0] > errors[1] > errors[2]


def test_parameter_sets_and_notes_of_a_packet_do_not_count():
    shared = b"\0\0\0\1\x67abc" + b"\0\0\1\x68d" + b"\0\0\1\x06note"
    assert film_codecs.count_picture_bytes(shared + b"\0\0\1\x65picture") == 11
    assert film_codecs.count_picture_bytes(b"\0\0\0\1\x41pic") == 8


def test_a_tokenizer_that_continues_another_is_opened_with_the_one_beside_it(tmp_path):
    nano = Path(__file__).parents[2] / "model_cards" / "nano"
    (tmp_path / "video_tokenizer").mkdir()
    shutil.copy(nano / "video_tokenizer" / "config.json", tmp_path / "video_tokenizer")
    with pytest.raises(ValueError, match="image_tokenizer belongs beside it"):
        open_entries([str(tmp_path / "video_tokenizer")])

"""The bench of compression with intervals: rows are measured once, and the table says what they say."""

from argparse import Namespace
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tools import bench_compression as bench
from unimodal.compression import FIT
from unimodal.compression.learned import DecoderShape
from unimodal.compression.trained import save_compressor
from unimodal.evaluation.compression_timing import FirstToken
from unimodal.files import read_json_as, write_json


def save(folder, method, keep, scores, seed=0, time=None, cache=1.0, medium="picture", groups=()):
    row = bench.Row(method, keep, seed, medium, scores, list(groups))
    folder = folder / "tiny"
    folder.mkdir(exist_ok=True)
    write_json(folder / row.name, asdict(row))
    if time is not None:
        times = bench.Times(method, keep, FirstToken(time, time, 1.0, cache, 3), 2.0)
        write_json(folder / f"times_{method.replace(' ', '-')}_{keep:g}.json", asdict(times))


def read_lines(path):
    return {line.split(" | ")[0].strip("| "): line for line in path.read_text().splitlines()}


def test_the_table_has_intervals_paired_changes_and_the_best_baseline_of_equal_time(tmp_path):
    right = [float(number < 140) for number in range(200)]
    save(tmp_path, bench.WHOLE, 1.0, right, time=1.0)
    save(tmp_path, "fastv", 0.25, [*right[:130], *[0.0] * 70], time=0.4)
    save(tmp_path, "stride", 0.25, [float(number % 2) for number in range(200)], time=0.38)
    save(tmp_path, "pooling", 0.5, right, time=0.6)
    for seed in range(2):
        save(tmp_path, "random", 0.25, [float(seed)] * 200, seed, time=0.36 if seed == 0 else None)
    bench.write(tmp_path, tmp_path / "table.md")
    lines = read_lines(tmp_path / "table.md")
    low, high = bench.Scores(np.array(right), np.arange(200)).find_interval()
    assert 60 < low < 70 < high < 80
    assert f"70.0 ({low:.0f}–{high:.0f}) |" in lines[bench.WHOLE]
    assert "65.0 (" in lines["fastv"] and "; -5.0 (-8 to -2)" in lines["fastv"]
    assert lines["fastv"].endswith("50.0 |") and "pooling" not in lines["fastv"]  # pooling is slower
    assert "50.0 (50–50)" in lines["random"]  # the mean of the seeds
    svg = (tmp_path / "table_tiny.svg").read_text()
    assert svg.count("<circle") == 5 and "fastv, 0.25" in svg
    with pytest.raises(ValueError, match="no rows"):
        bench.write(tmp_path / "none", tmp_path / "table.md")


def test_the_verdicts_are_of_means_times_and_paired_intervals(tmp_path):
    right = [float(number < 140) for number in range(200)]
    save(tmp_path, bench.WHOLE, 1.0, right, time=1.0)
    save(tmp_path, "fastv", 0.25, [*right[:138], *[0.0] * 62], time=0.49)  # one point
    save(tmp_path, "tome", 0.25, [*right[:137], *[0.0] * 63], time=0.3)  # a point and a half
    save(tmp_path, "kivi", 0.25, right, time=1.1, cache=0.24)
    save(tmp_path, "snapkv", 0.25, right, time=1.1, cache=0.26)
    save(tmp_path, "divprune", 0.25, [*[0.0] * 40, *right[40:]], time=0.3)
    save(tmp_path, "pooling", 0.25, [*[0.0] * 20, *right[20:]], time=0.3)
    bench.write(tmp_path, tmp_path / "table.md")
    halving, quarter, *_ = (line for line in (tmp_path / "table.md").read_text().splitlines() if "at most one" in line)
    assert halving.endswith("in the mean: fastv 0.25 (× 0.49; picture -1.0 (-2 to +0)).")
    assert quarter.endswith("in the mean: kivi 0.25 (× 0.24; picture +0.0 (+0 to +0)).")
    [pooling] = (line for line in (tmp_path / "table.md").read_text().splitlines() if "below pooling" in line)
    assert "difference: divprune 0.25 (picture); above it 2 rows" in pooling  # those of the cache do not count


def test_a_method_that_fails_later_questions_is_told_beyond_what_the_whole_model_loses(tmp_path):
    right, groups = [float(number % 10 < 7) for number in range(200)], [number // 4 for number in range(200)]
    for kind in ("scene", "later"):
        save(tmp_path, bench.WHOLE, 1.0, [0.0] * 40 + right[40:] if kind == "later" else right, medium=kind,
             groups=groups)  # fmt: skip
        save(tmp_path, "snapkv", 0.25, [0.0] * 40 + right[40:] if kind == "later" else right, medium=kind,
             groups=groups)  # fmt: skip
        save(tmp_path, "fastv", 0.25, [0.0] * 120 + right[120:] if kind == "later" else right, medium=kind,
             groups=groups)  # fmt: skip
    bench.write(tmp_path, tmp_path / "table.md")
    [told] = (line for line in (tmp_path / "table.md").read_text().splitlines() if "a later question than" in line)
    assert "by the interval: fastv 0.25 (-28.0 (" in told and "snapkv" not in told


def test_an_interval_of_several_questions_about_one_picture_is_of_pictures():
    each = np.repeat(np.arange(50) < 35, 4).astype(float)
    alone, together = (bench.Scores(each, groups).find_interval() for groups in (np.arange(200), np.arange(200) // 4))
    assert together[1] - together[0] > 1.8 * (alone[1] - alone[0])


@pytest.fixture
def asked(tmp_path):
    return Namespace(rows=tmp_path, model="cards/tiny", data=tmp_path, media=("picture", "later"), methods=("stride",),
                     keeps=(0.5,), questions=3, rounds=1, seed=0, trained=None)  # fmt: skip


def test_what_is_measured_is_not_measured_again(tmp_path, monkeypatch, asked):
    told = []
    questions = SimpleNamespace(judge=lambda answer, number: float(answer == number))

    class Several(bench.SeveralQuestions):
        def __init__(self):
            pass

        groups = [0, 0, 1]

        def answer_alone(self, model, seed, blind=False):
            told.append("several blind" if blind else "several")
            return [1, 0, 0]

        def answer_later(self, model):
            told.append("later")
            return [1, 1, 0]

        def judge(self, answers):
            return list(map(float, answers))

    monkeypatch.setattr(bench.SeveralQuestions, "load", lambda *_: Several())
    monkeypatch.setattr(bench, "ask_about", lambda *_: questions)
    monkeypatch.setattr(bench, "open_config", lambda *config: bench.nullcontext())
    monkeypatch.setattr(bench, "answer_questions", lambda *_: told.append("with") or [0, 1, 9])
    monkeypatch.setattr(bench, "answer_blindly", lambda *_: told.append("blind") or [9, 9, 2])
    model = SimpleNamespace(engine=SimpleNamespace(model=torch.nn.Linear(2, 2)))
    for _ in range(2):
        bench.measure(model, asked)
    assert told == ["with", "later", "blind", "several blind", "with", "later"]
    assert read_json_as(bench.Row, tmp_path / "tiny" / bench.name_row(bench.WHOLE, 1.0, 0, "picture")).scores == [
        1,
        1,
        0,
    ]
    later = read_json_as(bench.Row, tmp_path / "tiny" / bench.name_row("stride", 0.5, 0, "later"))
    assert later.scores == [1, 1, 0] and later.groups == [0, 0, 1]
    torch.nn.init.zeros_(model.engine.model.weight)
    with pytest.raises(ValueError, match="rows in .*tiny are of weights .* not of weights .*; name another folder"):
        bench.measure(model, asked)


def test_every_method_and_five_seeds_of_random_pruning_are_listed():
    configs = list(bench.list_configs())
    assert len(set(configs)) == len(configs)
    assert sum(config[:2] == ("random", 0.25) for config in configs) == 5
    assert {name for name, *_ in configs} == {bench.WHOLE, bench.BLIND, *bench.METHOD_NAMES}
    few = list(bench.list_configs(("fastv",), (0.5,)))
    assert few == [(bench.WHOLE, 1.0, 0), (bench.BLIND, 1.0, 0), ("fastv", 0.5, 0)]


def test_what_cannot_be_asked_is_one_line(tmp_path, capsys):
    for wrong, said in (
        (["--media", "smell"], "--media smell: choose from"),
        (["--methods", "pmod"], "--methods pmod: choose from"),
        (["--keeps", "1.5"], "shares between 0 and 1"),
        (["--questions", "0"], "at least 1"),
    ):
        with pytest.raises(SystemExit) as status:
            bench.main(["measure", "--rows", str(tmp_path / "rows"), *wrong])
        assert status.value.code == 2 and said in capsys.readouterr().err
    with pytest.raises(SystemExit) as status:
        bench.main(["write", "--rows", str(tmp_path / "none"), "--out", str(tmp_path / "table.md")])
    error = capsys.readouterr().err.strip()
    assert (
        status.value.code == 2 and "has no rows" in error and "\n" not in error and not (tmp_path / "table.md").exists()
    )


def test_a_method_that_was_taught_is_opened_from_its_folder_and_said_to_be(tmp_path, monkeypatch):
    shape = DecoderShape(8, 2)
    save_compressor(tmp_path / "taught" / "fit", FIT(0.5, **{FIT.part: FIT.make_part(shape)}), shape)
    opened: list[tuple[float, bool]] = []
    method = bench.open_config(SimpleNamespace(), tmp_path / "taught", bench.WHOLE, 1.0, 0)
    with method as nothing:
        assert nothing is None
    monkeypatch.setattr(FIT, "__call__", lambda own, model: opened.append((own.keep, own.module is not None)) or model)
    assert bench.open_config("model", tmp_path / "taught", "fit", 0.25, 0) == "model" and opened == [(0.25, True)]
    rows = tmp_path / "rows"
    rows.mkdir()
    save(rows, bench.WHOLE, 1.0, [1.0, 0.0])
    save(rows, "fit", 0.25, [0.0, 0.0])
    bench.write(rows, tmp_path / "page.md")
    assert (
        "Taught by `python tools/train_compressors.py`, some minutes each: fit." in (tmp_path / "page.md").read_text()
    )

"""The bench of compression with intervals: rows are measured once, and the table says what they say."""

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

from tools import bench_compression as bench
from unimodal.files import write_json


def save(folder, method, keep, scores, seed=0, ttft=None):
    row = bench.Row(method, keep, seed, "picture", scores)
    write_json(folder / row.name, asdict(row))
    if ttft is not None:
        figures = {
            "ttft_ms_batch_1": ttft,
            "ttft_ms_batch_8": ttft,
            "tokens_per_s_batch_1": 9.0,
            "memory_mib_batch_8": 2.0,
        }
        name = f"times_{method.replace(' ', '-')}_{keep:g}.json"
        write_json(folder / name, asdict(bench.Times(method, keep, figures)))


def test_the_table_has_intervals_paired_changes_and_the_best_baseline_of_equal_time(tmp_path):
    right = [float(number < 140) for number in range(200)]
    save(tmp_path, bench.WHOLE, 1.0, right, ttft=50.0)
    save(tmp_path, "fastv", 0.25, [*right[:130], *[0.0] * 70], ttft=20.0)
    save(tmp_path, "stride", 0.25, [float(number % 2) for number in range(200)], ttft=19.0)
    save(tmp_path, "pooling", 0.5, right, ttft=30.0)
    for seed in range(2):
        save(tmp_path, "random", 0.25, [float(seed)] * 200, seed, ttft=18.0 if seed == 0 else None)
    bench.write(tmp_path, tmp_path / "table.md", "Title")
    lines = {line.split(" | ")[0].strip("| "): line for line in (tmp_path / "table.md").read_text().splitlines()}
    low, high = bench.bootstrap(np.array(right))
    assert 60 < low < 70 < high < 80
    assert f"70.0 ({low:.0f}–{high:.0f}) |" in lines[bench.WHOLE]
    assert "65.0 (" in lines["fastv"] and "; -5.0 (-8 to -2)" in lines["fastv"]
    assert lines["fastv"].endswith("50.0 |") and "pooling" not in lines["fastv"]  # pooling is slower
    assert "50.0 (50–50)" in lines["random"]  # the mean of the seeds
    svg = (tmp_path / "table.svg").read_text()
    assert svg.count("<circle") == 5 and "fastv, 0.25" in svg
    with pytest.raises(ValueError, match="no rows"):
        bench.write(tmp_path / "none", tmp_path / "table.md", "Title")


def test_what_is_measured_is_not_measured_again(tmp_path, monkeypatch):
    asked = []
    questions = SimpleNamespace(judge=lambda answer, number: float(answer == number))
    monkeypatch.setattr(bench, "list_configs", lambda: iter([(bench.WHOLE, 1.0, 0), (bench.BLIND, 1.0, 0)]))
    monkeypatch.setattr(bench, "ask_about", lambda *_: questions)
    monkeypatch.setattr(bench, "answer_questions", lambda *_: asked.append("whole") or [0, 1, 9])
    monkeypatch.setattr(bench, "answer_blindly", lambda *_: asked.append("blind") or [9, 9, 2])
    monkeypatch.setattr(bench, "make_timed_prompts", lambda *_: [])
    monkeypatch.setattr(bench, "measure_times", lambda *_: {"ttft_ms_batch_1": 1.0})
    for _ in range(2):
        bench.measure(None, tmp_path, tmp_path, ("picture",), 3, 0)
    assert asked == ["whole", "blind"]
    assert bench.read_json_as(bench.Row, tmp_path / bench.name_row(bench.WHOLE, 1.0, 0, "picture")).scores == [1, 1, 0]


def test_every_method_and_five_seeds_of_random_pruning_are_listed():
    configs = list(bench.list_configs())
    assert len(set(configs)) == len(configs)
    assert sum(config[:2] == ("random", 0.25) for config in configs) == 5
    assert {name for name, *_ in configs} == {bench.WHOLE, bench.BLIND, *bench.METHOD_NAMES}

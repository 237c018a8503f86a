"""The bench of attacks: a row is measured once, and the table names the cheapest defence that held."""

import pytest

from tools import bench_attacks as bench
from unimodal.evaluation.compression_attack import DEFENCES, Outcome


def make_outcome(method, keep, attacked, jpeg):
    clean, random, led, whole, saved = ([at < right for at in range(20)] for right in (18, 17, attacked, 20, jpeg))
    tried = dict.fromkeys(DEFENCES, led) | {"jpeg": saved}
    return Outcome(method, keep, 8 / 255, 16, clean, random, led, whole, tried, tried, [0.25, 0.1])


def test_a_row_is_measured_once_and_told_with_its_defence(tmp_path, monkeypatch, capsys):
    tried = []

    def attack(pictures, method, keep, open_config, strength, queries):
        tried.append((method, keep, round(255 * strength), queries))
        return make_outcome(method, keep, 6 if method == "fastv" else 18, 17)

    monkeypatch.setattr(bench, "attack", attack)
    monkeypatch.setattr(bench, "load", lambda name: None)
    monkeypatch.setattr(bench.Pictures, "load", lambda data: None)
    monkeypatch.setattr(bench, "AttackedPictures", lambda *_: [0] * 20)
    settings = ["measure", "--rows", str(tmp_path / "rows"), "--methods", "fastv,stride", "--keeps", "0.25,0.5"]
    for _ in range(2):
        bench.main(settings)
    assert tried == [("fastv", 0.25, 8, 16), ("stride", 0.25, 8, 16), ("fastv", 0.5, 8, 16), ("stride", 0.5, 8, 16)]
    assert "fastv_0.25: clean 18, attacked 6 of 20; jpeg" in capsys.readouterr().out
    bench.main(["write", "--rows", str(tmp_path / "rows"), "--out", str(tmp_path / "table.md")])
    lines = (tmp_path / "table.md").read_text().splitlines()
    [fastv] = (line for line in lines if line.startswith("| fastv | 0.25"))
    assert "| 90 (70–97) | 85 (64–95) | 30 (15–52) | 100 (84–100) | +60 |" in fastv and fastv.endswith("| jpeg |")
    assert "30; 30 | 85; 85 |" in fastv and lines[2].startswith("20 pictures that the whole model names; ")
    [stride] = (line for line in lines if line.startswith("| stride | 0.25"))
    assert stride.endswith("| none needed |")


def test_what_cannot_be_attacked_is_one_line(tmp_path, capsys):
    for wrong, said in (
        (["measure", "--methods", "pmod"], "--methods pmod: choose from"),
        (["measure", "--keeps", "0"], "shares between 0 and 1"),
        (["measure", "--strength", "0"], "above 0 and at most 255"),
        (["write"], "has no rows; measure some first"),
    ):
        with pytest.raises(SystemExit) as status:
            bench.main([*wrong, "--rows", str(tmp_path / "none")])
        assert status.value.code == 2 and said in capsys.readouterr().err

"""tools/bench_training.py: our own side on a tiny base, and the table."""

import argparse
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool():
    return runpy.run_path(str(ROOT / "tools" / "bench_training.py"))


def test_our_side_measures_speed_memory_and_the_products_of_a_token(tool, tiny_base):
    args = argparse.Namespace(
        base=str(tiny_base), rank=4, length=64, rows=1, steps=2, precision="float32", profile=True
    )
    found = tool["run_ours"](args, ["a red apple on the table", "it is a cat"] * 60)
    assert found["tokens_per_second"] > 0 and 0 < found["peak_gib"] < 8
    # two layers of width 32 and inner width 48, the tied table as the head, 14 controls, rank 4 on seven layers
    layers = 2 * (4 * 32 * 32 + 3 * 32 * 48) + 5 * 32
    adapters = 2 * 4 * (4 * (32 + 32) + 3 * (32 + 48))
    from unimodal.model.base import load_base

    rows = load_base(tiny_base).num_rows
    assert found["flops_per_token"] == 4 * (layers + 32 * rows) + 6 * (adapters + 14 * 32)


def test_too_few_documents_are_told(tool, tiny_base):
    args = argparse.Namespace(
        base=str(tiny_base), rank=4, length=64, rows=4, steps=4, precision="float32", profile=False
    )
    with pytest.raises(SystemExit, match="too few"):
        tool["run_ours"](args, ["it is a cat"])


def test_the_table_has_medians_ratios_and_utilisation(tool):
    ours = [{"tokens_per_second": s, "peak_gib": 2.0, "flops_per_token": 1e9} for s in (90.0, 300.0, 100.0)]
    theirs = [{"tokens_per_second": s, "peak_gib": 4.0, "flops_per_token": 1e9} for s in (50.0, 40.0, 60.0)]
    lines = tool["report"]({"ours": ours, "trl padded": theirs, "trl packed": []}, 1.0).splitlines()
    assert len(lines) == 3
    assert lines[1].split()[1:] == ["100.0", "90.0", "300.0", "2.00", "1.00×", "1.00×", "10.0%"]
    assert lines[2].split()[2:] == ["50.0", "40.0", "60.0", "4.00", "2.00×", "0.50×", "5.0%"]
    assert "torch" in tool["list_versions"]() and "trl" in tool["list_versions"]()

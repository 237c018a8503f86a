"""The bench of growth says what the cache takes of memory, and rows of one prompt take little more than one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools import bench_generation as bench

TOOLS = Path(__file__).parents[2] / "tools"


def run(monkeypatch, capsys, *options):
    """The lines of the table: the columns by name, of each row and guidance."""
    monkeypatch.setitem(bench.SHAPES, "nano", (32, 2, 2, 1, 48, 64))
    monkeypatch.setattr(sys, "argv", ["bench_generation.py", "--growth", "--batches", "8", *options])
    bench.main()
    lines = capsys.readouterr().out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("batch"))
    return [list(map(float, line.split())) for line in lines[at + 1 :]]


@pytest.mark.sweep
def test_memory_of_eight_guided_rows(monkeypatch, capsys):
    """Guided and not, with a prompt in common and without: 8 or 16 answers, and 1 or 2 prompts for 8 or 16."""
    options = ("--contexts", "600", "--kv", "int8")
    (shared_plain, shared), (alone_plain, alone) = (
        [row[-1] for row in run(monkeypatch, capsys, *options, *more)] for more in ((), ("--alone",))
    )
    assert alone == pytest.approx(2 * alone_plain, rel=0.2) and shared == pytest.approx(2 * shared_plain, rel=0.2)
    assert shared < 0.4 * alone
    [wide] = [row[-1] for row in run(monkeypatch, capsys, "--contexts", "600")][1:]
    assert wide > 3.4 * shared  # float32 for 8 bits and a scale


def test_without_a_gpu_it_is_said_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        run(monkeypatch, capsys, "--device", "cuda")
    assert "no CUDA GPU is found here" in capsys.readouterr().err


@pytest.mark.sweep
def test_the_command_for_all_rows_of_a_gpu_says_that_there_is_none():
    env = {**os.environ, "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(["bash", TOOLS / "bench_gpu.sh"], capture_output=True, text=True, env=env, timeout=100)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("no CUDA GPU is found here")

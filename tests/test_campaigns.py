"""A campaign draws a slice or the whole, the same cases for the same seed, and names the case that fails."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

CASES = '''
"""Two campaigns, a property and a product."""
import pytest
from hypothesis import given, strategies
from tests.campaigns import examples
def test_draws(campaign, capsys):
    drawn = [rng.random() for rng in campaign(3, 40)]
    with capsys.disabled():
        print("drawn", len(drawn), drawn[:2])
def test_fails(campaign):
    for case, rng in enumerate(campaign(3, 40)):
        assert case < 2
@examples(4)
@given(strategies.integers())
def test_property(value):
    pass
@pytest.mark.sliced
@pytest.mark.parametrize("base", ["a", "b", "c"])
@pytest.mark.parametrize("medium", [1, 2])
def test_product(base, medium, capsys):
    with capsys.disabled():
        print("product of", base, medium)
@pytest.mark.sliced(by=lambda size: {"parity": size % 2, "large": size > 3})
@pytest.mark.parametrize("size", range(8))
def test_kinds(size, capsys):
    with capsys.disabled():
        print("kind of", size)
def test_plain():
    pass
'''


def run(folder: Path, *arguments: str, **variables: str) -> str:
    (folder / "test_cases.py").write_text(CASES)
    (folder / "docs").mkdir(exist_ok=True)
    (folder / "conftest.py").write_text("from tests.conftest import *\nfrom tests.conftest import pytest_configure\n")
    for name in ("pyproject.toml", "CONTRIBUTING.md"):
        (folder / name).write_text((ROOT / name).read_text())
    page = f"import sys; sys.path[:0] = [{str(ROOT)!r}]; from pathlib import Path; import tests.campaigns as c; "
    page += f"c.PAGE = Path({str(folder / 'docs' / 'study.md')!r}); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", page, "-v", "-p", "no:cacheprovider", *arguments, str(folder)]
    done = subprocess.run(command, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True)
    return done.stdout + done.stderr


def test_a_slice_prints_its_seed_and_names_the_case_that_fails(tmp_path):
    out = run(tmp_path, UNIMODAL_SEED="5")
    assert "campaigns: a slice, UNIMODAL_SEED=5" in out
    assert "drawn 3 " in out and "case 2 of 3, UNIMODAL_SEED=5" in out and "8 passed, 9 deselected" in out
    product = re.findall(r"product of (\w) (\d)", out)
    assert len(product) == 3 and {word for pair in product for word in pair} == {"a", "b", "c", "1", "2"}
    sizes = [int(size) for size in re.findall(r"kind of (\d)", out)]
    assert len(sizes) == 2 and {size % 2 for size in sizes} == {0, 1} and {size > 3 for size in sizes} == {False, True}
    line = next(line for line in out.splitlines() if "drawn" in line)
    assert line.split("drawn")[1] in run(tmp_path, UNIMODAL_SEED="5")
    assert line.split("drawn")[1] not in run(tmp_path, UNIMODAL_SEED="6")
    assert not (tmp_path / "docs" / "study.md").exists()


def test_a_study_runs_the_whole_of_what_has_one_and_writes_its_table(tmp_path):
    out = run(tmp_path, "-m", "study", UNIMODAL_STUDY="1", UNIMODAL_SEED="5")
    assert "drawn 40 " in out and "1 deselected" in out and out.count("product of") == 6 and out.count("kind of") == 8
    table = (tmp_path / "docs" / "study.md").read_text()
    assert "| `test_cases.py::test_draws` | 40 | 5 | passed |" in table
    assert "| `test_cases.py::test_fails` | 40 | 5 | 1 of 1 failed |" in table
    assert "| `test_cases.py::test_property` | 80 examples | 5 | passed |" in table
    run(tmp_path, "-m", "study", "-k", "draws", UNIMODAL_STUDY="1", UNIMODAL_SEED="6")
    again = (tmp_path / "docs" / "study.md").read_text()
    assert "| `test_cases.py::test_draws` | 40 | 6 | passed |" in again
    assert again.count("test_draws") == 1 and again.count("| 5 |") == table.count("| 5 |") - 1

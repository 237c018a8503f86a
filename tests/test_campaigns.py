"""A campaign draws a slice or the whole, the same cases for the same seed, and names the case that fails; the parts of
a sweep are apart, the same in every process, and together the whole."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaigns import choose_part, read_part

ROOT = Path(__file__).resolve().parents[1]

CASES = '''
"""Two campaigns, a property, a product and a sweep."""
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
@pytest.mark.sweep
@pytest.mark.parametrize("name", "abcdefg")
def test_swept(name, capsys):
    with capsys.disabled():
        print("sweep of", name)
@pytest.mark.sweep
@pytest.mark.sliced(by=lambda kind: {"kind": kind // 2})
@pytest.mark.parametrize("kind", range(12))
def test_swept_cover(kind, capsys):
    with capsys.disabled():
        print("of a cover", kind)
@pytest.mark.sweep("of tests")
def test_swept_one(capsys):
    with capsys.disabled():
        print("one of tests")
@pytest.mark.sweep("of tests")
@pytest.mark.parametrize("name", "xy")
def test_swept_other(name, capsys):
    with capsys.disabled():
        print("one of tests")
def test_plain():
    pass
'''


def run(folder: Path, *arguments: str, **variables: str) -> str:
    (folder / "test_cases.py").write_text(CASES)
    (folder / "docs").mkdir(exist_ok=True)
    (folder / "conftest.py").write_text(
        "from tests.conftest import *\nfrom tests.conftest import pytest_addoption, pytest_configure\n"
    )
    for name in ("pyproject.toml", "CONTRIBUTING.md"):
        (folder / name).write_text((ROOT / name).read_text())
    page = f"import sys; sys.path[:0] = [{str(ROOT)!r}]; from pathlib import Path; import tests.campaigns as c; "
    page += f"c.PAGE = Path({str(folder / 'docs' / 'study.md')!r}); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    command = [sys.executable, "-c", page, "-v", "-p", "no:cacheprovider", *arguments, str(folder)]
    done = subprocess.run(command, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True)
    return done.stdout + done.stderr


def test_a_slice_prints_its_seed_and_names_the_case_that_fails(tmp_path):
    out = run(tmp_path, UNIMODAL_SEED="5")
    assert "campaigns: a slice, sweeps: whole, UNIMODAL_SEED=5" in out
    assert "drawn 3 " in out and "case 2 of 3, UNIMODAL_SEED=5" in out and "24 passed, 15 deselected" in out
    assert out.count("sweep of") == 7
    product = re.findall(r"product of (\w) (\d)", out)
    assert len(product) == 3 and {word for pair in product for word in pair} == {"a", "b", "c", "1", "2"}
    sizes = [int(size) for size in re.findall(r"kind of (\d)", out)]
    assert len(sizes) == 2 and {size % 2 for size in sizes} == {0, 1} and {size > 3 for size in sizes} == {False, True}
    line = next(line for line in out.splitlines() if "drawn" in line)
    assert line.split("drawn")[1] in run(tmp_path, UNIMODAL_SEED="5")
    assert line.split("drawn")[1] not in run(tmp_path, UNIMODAL_SEED="6")
    assert not (tmp_path / "docs" / "study.md").exists()


def test_make_test_runs_a_part_of_every_sweep(tmp_path):
    out = run(tmp_path, "--sweep", "2/3", "-k", "swept")
    assert "sweeps: part 2 of 3" in out and out.count("sweep of") == 2
    assert out.count("of a cover") == 2 and out.count("one of tests") == 1


@pytest.mark.parametrize("text", ["", "third", "0/3", "4/3", "1/", "-1/3", "1/3/5"])
def test_a_part_that_is_none_is_refused_by_name(text):
    with pytest.raises(pytest.UsageError, match=f"^--sweep {text}: write whole, or N/M"):
        read_part(text)
    assert read_part("whole") is None and read_part("2/3") == (2, 3)


@pytest.mark.parametrize("cases", [1, 2, 3, 7])
@pytest.mark.parametrize("parts", [1, 3])
def test_the_parts_of_a_sweep_are_apart_and_together_the_whole(cases, parts):
    names = [f"name {number}]" for number in range(cases)]
    drawn = [choose_part(names, number, parts) for number in range(1, parts + 1)]
    assert set.union(*drawn) == set(names) and all(drawn)
    assert drawn == [choose_part(names[::-1], number, parts) for number in range(1, parts + 1)]
    if cases >= parts:
        assert sum(map(len, drawn)) == cases
        assert max(map(len, drawn)) - min(map(len, drawn)) <= 1


def test_a_study_runs_the_whole_of_what_has_one_and_writes_its_table(tmp_path):
    out = run(tmp_path, "-m", "study", UNIMODAL_STUDY="1", UNIMODAL_SEED="5")
    assert "drawn 40 " in out and "11 deselected" in out and out.count("product of") == 6 and out.count("kind of") == 8
    table = (tmp_path / "docs" / "study.md").read_text()
    assert "| `test_cases.py::test_draws` | 40 | 5 | passed |" in table
    assert "| `test_cases.py::test_fails` | 40 | 5 | 1 of 1 failed |" in table
    assert "| `test_cases.py::test_property` | 80 examples | 5 | passed |" in table
    run(tmp_path, "-m", "study", "-k", "draws", UNIMODAL_STUDY="1", UNIMODAL_SEED="6")
    again = (tmp_path / "docs" / "study.md").read_text()
    assert "| `test_cases.py::test_draws` | 40 | 6 | passed |" in again
    assert again.count("test_draws") == 1 and again.count("| 5 |") == table.count("| 5 |") - 1

"""Studies by name, their figures as JSON, and recipes that are run in their process."""

import json
import sys

import pytest

from unimodal.tuning.study import run_recipe, run_studies

RECIPE = """
import json, pathlib, sys
assert __name__ == "__main__"
pathlib.Path(sys.argv[2].partition("=")[2]).write_text(json.dumps(sys.argv[1:]))
"""


def test_figures_are_printed_and_kept(tmp_path, capsys):
    def add(parser):
        parser.add_argument("--out", type=type(tmp_path))
        parser.add_argument("--steps", type=int, default=3)

    studies = {"double": lambda study: {"found": 2 * study.steps}, "name": lambda study: {"model": str(study.model)}}
    run_studies("What it is.", studies, lambda options: options, add, ["name", "double", f"--out={tmp_path}/figures"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [list(line) for line in lines] == [["name"], ["double"]]
    assert lines[1]["double"]["found"] == 6 and lines[1]["double"]["processor_seconds"] >= 0
    assert json.loads((tmp_path / "figures" / "double.json").read_text()) == lines[1]["double"]
    with pytest.raises(SystemExit) as ended:
        run_studies("What it is.", studies, lambda options: options, add, ["other", f"--out={tmp_path}"])
    assert ended.value.code == 2 and "invalid choice: 'other'" in capsys.readouterr().err


def test_a_recipe_is_run_as_its_command_line_does(tmp_path):
    (tmp_path / "mine.py").write_text(RECIPE)
    before = sys.argv
    run_recipe(tmp_path / "mine.py", f"out={tmp_path}/told.json", "loop.steps=2")
    told = json.loads((tmp_path / "told.json").read_text())
    assert told == ["--set", f"out={tmp_path}/told.json", "--set", "loop.steps=2"] and sys.argv is before
    (tmp_path / "torn.py").write_text("raise ValueError('no')")
    with pytest.raises(ValueError, match="no"):
        run_recipe(tmp_path / "torn.py")
    assert sys.argv is before

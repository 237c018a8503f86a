"""The card of nano 2 keeps what was measured after every part, and counts steps on over the parts."""

import json
import runpy
import shutil
import sys

import pytest

from tests.commands import ROOT

FILES = (
    "README.md",
    "config.json",
    "recipe.json",
    "curve.json",
    "milestones.json",
    "report.json",
    "report_drawing.json",
    "report_more.json",
)


@pytest.fixture
def write_card(tmp_path, monkeypatch):
    for name in FILES:
        shutil.copy(ROOT / "model_cards" / "nano2" / name, tmp_path / name)

    def write(*settings):
        parts = [f"model={tmp_path}", *settings]
        monkeypatch.setattr(sys, "argv", ["write_nano2_card.py", *(x for part in parts for x in ("--set", part))])
        runpy.run_path(str(ROOT / "recipes" / "write_nano2_card.py"), run_name="__main__")
        return (tmp_path / "README.md").read_text()

    return write


def test_a_later_part_has_a_column_and_losses_of_its_own(tmp_path, write_card):
    first = write_card()
    assert write_card() == first  # as many steps: nothing is added
    kept = json.loads((tmp_path / "milestones.json").read_text())
    record = json.loads((tmp_path / "recipe.json").read_text())
    reached = record["config"]["loop"]["steps"] + record["initial_steps"]
    assert kept[-1]["steps"] == reached
    record["initial_steps"], record["config"]["loop"]["steps"] = reached, 100
    (tmp_path / "recipe.json").write_text(json.dumps(record))
    report = json.loads((tmp_path / "report.json").read_text())
    report["suites"]["picture_naming"]["seen"]["percent"] = 99.9
    (tmp_path / "report.json").write_text(json.dumps(report))
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps({"step": step, "loss_text": 0.5}) + "\n" for step in (50, 100)))
    card = write_card(f"metrics=[{metrics}]", "more=true")
    per_step = record["config"]["tokens_per_step"]
    grown = [line for line in card.splitlines() if line.startswith("| picture → name | seen concepts")]
    assert f"| after {reached * per_step / 1e6:.1f} M tokens | measured |" in card
    assert (
        len(grown) == 1
        and "99.9%" in grown[0]
        and kept[-1]["measured"]["picture → name, seen concepts, unseen style"] in grown[0]
    )
    assert len(json.loads((tmp_path / "milestones.json").read_text())) == len(kept) + 1
    curve = json.loads((tmp_path / "curve.json").read_text())
    assert [one["step"] for one in curve[-2:]] == [reached + 50, reached + 100] and len(curve) > 2

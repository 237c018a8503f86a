"""The diffs in CONTRIBUTING.md are real: their lines are in the files that they name."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_line_of_a_diff_is_in_its_file():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    count = 0
    for diff in re.findall(r"```diff\n(.*?)```", page, re.S):
        lines: list[str] = []
        for line in diff.splitlines():
            if line.startswith("+++ b/"):
                lines = (ROOT / line.removeprefix("+++ b/")).read_text(encoding="utf-8").splitlines()
                continue
            wanted = line[1:].partition("  # ")[0]  # remarks are the page's own
            assert any(found.partition("  # ")[0] == wanted for found in lines), line
            count += 1
    assert count > 15

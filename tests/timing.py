"""How long tests take in processor time, which a busy machine stretches less than the clock: a pytest plugin.

After a run it prints the twenty slowest tests and the time of each folder, in `make test` beside its budget, which
stands in CONTRIBUTING.md. A test's time holds its set-up and tear-down, its threads, and the processes that it waited
for. What several tests share (a module's server, a session's model) counts for the test that was first to need it.
"""

import re
import resource
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import commands
from tests.campaigns import WHOLE

ROOT = Path(__file__).resolve().parents[1]
SLOWEST = 20
WORTH_A_TABLE = 100  # tests: a run of fewer is somebody's own look at a few


def read_processor_s() -> float:
    """Seconds of processor time of this process, of its children that have ended, and of forked commands."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used) + commands.forked_s


def read_budgets(page: str) -> dict[str, float]:
    """Folder under `tests` → seconds of processor time that it may take, from the table in CONTRIBUTING.md."""
    return {name: float(seconds) for name, seconds in re.findall(r"^\| `tests/(\w+)` \| (\d+) s ", page, re.M)}


class ProcessorTime:
    """Adds up the processor time of every test; the workers of pytest-xdist send theirs with their reports."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)  # of a test, by its node id

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: "pytest.CallInfo[None]") -> Iterator[None]:
        report = yield
        began = item.stash.get(BEGAN, read_processor_s())
        item.stash[BEGAN] = read_processor_s()
        report.processor_s = item.stash[BEGAN] - began
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        item.stash[BEGAN] = read_processor_s()
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += getattr(report, "processor_s", 0.0)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
        if len(self.seconds) < WORTH_A_TABLE:
            return
        write = terminalreporter.write_line
        write(f"\nprocessor time: {sum(self.seconds.values()):.0f} s in all; the {SLOWEST} slowest tests:")
        for name, seconds in sorted(self.seconds.items(), key=lambda item: -item[1])[:SLOWEST]:
            write(f"  {seconds:6.1f} s  {name}")
        folders: dict[str, float] = defaultdict(float)
        for name, seconds in self.seconds.items():
            parts = name.split("::")[0].split("/")
            folders[parts[1] if len(parts) > 2 else "."] += seconds
        budgets = read_budgets((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
        whole = config.getoption("--sweep") == WHOLE
        write(f"by folder{'' if whole else ', beside the budget in CONTRIBUTING.md'}:")
        for folder, seconds in sorted(folders.items(), key=lambda item: -item[1]):
            budget = None if whole else budgets.get(folder)  # that is for an eighth of the sweeps
            over = "  OVER ITS BUDGET" if budget is not None and seconds > budget else ""
            write(f"  {seconds:6.1f} s {'' if budget is None else f' of {budget:.0f} s'}  {folder}{over}")


BEGAN = pytest.StashKey[float]()

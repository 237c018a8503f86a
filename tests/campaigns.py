"""Random campaigns: a slice of each in `make test`, the whole in `make study`, with a seed that is printed.

    def test_any_batch_gives_what_its_rows_give_alone(campaign):
        for rng in campaign(slice=8, whole=400):      # a random.Random for each case
            ...

Property tests of hypothesis are campaigns too: `examples(50)` draws 50 in `make test` and twenty times as many in `make
study`. Trainings that are short in `make test` ask `is_study()` how long they may be, and are marked `study`. That
target runs what is so marked (campaigns and property tests are by themselves) and writes docs/study.md: cases,
outcome and processor time of each test.

    make study SEED=7 ARGS='-k fast'
"""

import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

SEED = int(os.environ.get("UNIMODAL_SEED", "0"))
TIMES = 20  # examples of a property test in a study, for one in `make test`
PAGE = Path(__file__).resolve().parents[1] / "docs" / "study.md"

Campaign = Callable[[int, int], Iterator[random.Random]]


def is_study() -> bool:
    """Whether this run is `make study`."""
    return os.environ.get("UNIMODAL_STUDY") == "1"


def examples(count: int) -> settings:
    """Settings of a property test that draws `count` examples, or all of a study's."""
    return settings(max_examples=count * TIMES if is_study() else count, deadline=None)


@pytest.fixture
def campaign(request: pytest.FixtureRequest) -> Campaign:
    """`campaign(slice, whole)`: the cases of this run, each a `random.Random`; a failure names its case."""

    def draw(slice: int, whole: int) -> Iterator[random.Random]:
        cases = whole if is_study() else slice
        request.node.user_properties.append(("cases", cases))
        for case in range(cases):
            request.node.stash[CASE] = f"case {case} of {cases}, UNIMODAL_SEED={SEED}"
            yield random.Random(f"{SEED} {request.node.nodeid} {case}")
        del request.node.stash[CASE]

    return draw


CASE = pytest.StashKey[str]()


class Study:
    """Marks what a study runs, names the case that failed, and writes the table of a study."""

    def __init__(self) -> None:
        self.cases: dict[str, str] = {}
        self.outcomes: dict[str, str] = {}
        self.seconds: dict[str, float] = defaultdict(float)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_line(f"campaigns: {'whole' if is_study() else 'a slice'}, UNIMODAL_SEED={SEED}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            test = getattr(item, "obj", None)
            if getattr(test, "is_hypothesis_test", False) or "campaign" in getattr(item, "fixturenames", ()):
                item.add_marker("study")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: "pytest.CallInfo[None]") -> Iterator[None]:
        report = yield
        if call.when == "call" and call.excinfo is not None and CASE in item.stash:
            report.sections.append(("campaign", item.stash[CASE]))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not is_study():
            return
        name = report.nodeid
        self.seconds[name] += getattr(report, "processor_s", 0.0)
        self.cases.update((name, str(value)) for key, value in report.user_properties if key == "cases")
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[name] = report.outcome

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not is_study() or hasattr(session.config, "workerinput") or not self.outcomes:
            return
        lines = [
            "# What `make study` found",
            "",
            f"`make study SEED={SEED}`: random campaigns and small trainings whole; `make test` runs a slice of each.",
            f"{len(self.outcomes)} tests, {sum(self.seconds.values()):.0f} s of processor time.",
            "",
            "| test | cases | outcome | processor time |",
            "|---|---:|---|---:|",
        ]
        for name in sorted(self.outcomes):
            row = [f"`{name.replace('|', '¦')}`", self.cases.get(name, "1"), self.outcomes[name]]
            lines.append(f"| {' | '.join(row)} | {self.seconds[name]:.1f} s |")
        PAGE.write_text("\n".join([*lines, ""]), encoding="utf-8")


@pytest.fixture(autouse=True)
def count_examples(request: pytest.FixtureRequest) -> None:
    """Tells a study how many examples a property test draws."""
    test = getattr(request.node, "obj", None)
    if is_study() and getattr(test, "is_hypothesis_test", False):
        chosen = getattr(test, "_hypothesis_internal_use_settings", None) or settings()
        request.node.user_properties.append(("cases", f"{chosen.max_examples} examples"))

"""Tests that have a whole form, of which `make test` runs a part: one idea in three forms, by a seed that is printed.

    def test_any_batch_gives_what_its_rows_give_alone(campaign):
        for rng in campaign(slice=8, whole=400):      # a random.Random for each case
            ...

    @pytest.mark.sweep                                # every system is a promise of its own
    @pytest.mark.parametrize("name", SYSTEMS)
    def test_codes_come_back(name): ...

    @pytest.mark.sweep("trainings of recipes")        # one sweep over all tests that carry these words
    def test_it_trains_and_goes_on(): ...

    @pytest.mark.sliced                               # a product: bases × decoders × media …
    ...

A campaign draws random cases: `slice` of them wherever tests run, `whole` in `make study`. A sweep is a list of named
things that must all pass before anything lands, the cases of one test or tests of one kind: `make test` runs one part
of eight (`--sweep 1/8`), `.ci/run` all (`--sweep whole`, as a plain `pytest FILE` does). The eight parts are apart and
together the whole, and each has at least one case of every sweep. A product marked `sliced` runs as many of its cases
as show every value of every parameter, and all in `make study`. Where a parameter has many values of few kinds,
`sliced(by=describe)` covers what `describe(**parameters)` says of a case instead, a dict of its kinds: of 80 published
systems, one of each family. With both marks, a part of that cover is run.

Property tests of hypothesis are campaigns too: `examples(50)` draws 50, and twenty times as many in `make study`.
Trainings that are short in `make test` ask `is_study()` how long they may be, and are marked `study`. That
target runs what is so marked (campaigns and property tests are by themselves) and writes docs/study.md: cases, seed,
outcome and processor time of each test; it may be run in parts.

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

WHOLE = "whole"  # of --sweep
COLUMNS = ("test", "cases", "seed", "outcome", "processor time")

Campaign = Callable[[int, int], Iterator[random.Random]]


def is_study() -> bool:
    """Whether this run is `make study`."""
    return os.environ.get("UNIMODAL_STUDY") == "1"


def examples(count: int, whole: int | None = None) -> settings:
    """Settings of a property test that draws `count` examples; a study draws `whole`, by default TIMES as many."""
    return settings(max_examples=(whole or count * TIMES) if is_study() else count, deadline=None)


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


def describe_case(item: pytest.Function) -> dict[str, object]:
    """What a slice has to cover of a case: its parameters, or what the marker's `by` says of them."""
    marker = item.get_closest_marker("sliced")
    assert marker is not None
    describe: Callable[..., dict[str, object]] = marker.kwargs.get("by", dict)
    return describe(**item.callspec.params)


def number_values(cases: list[dict[str, object]]) -> list[dict[str, int]]:
    """Of each case, parameter → the number of its value among those of all cases."""
    known: dict[str, list[object]] = defaultdict(list)
    numbered = []
    for case in cases:
        numbers = {}
        for name, value in case.items():
            found = [number for number, seen in enumerate(known[name]) if seen is value or is_same(seen, value)]
            if not found:
                known[name].append(value)
            numbers[name] = found[0] if found else len(known[name]) - 1
        numbered.append(numbers)
    return numbered


def is_same(one: object, other: object) -> bool:
    """Whether two kinds, which are plain values, are the same; other values are themselves alone."""
    return isinstance(one, str | int | None) and type(one) is type(other) and one == other


def cover_values(cases: list[dict[str, int]], rng: random.Random) -> set[int]:
    """The numbers of a few cases, at random, in which every value of every parameter occurs.

    cases: parameter → the number of its value.
    """
    order = rng.sample(range(len(cases)), len(cases))
    missing = {pair for case in cases for pair in case.items()}
    chosen: set[int] = set()
    while missing:
        best = max(order, key=lambda number: len(missing & cases[number].items()))  # the first of the best
        chosen.add(best)
        missing -= cases[best].items()
    return chosen


def slice_products(items: list[pytest.Item]) -> list[pytest.Item]:
    """The cases of tests marked `sliced` that `make test` leaves to `make study`; a skipped case is no choice."""
    products: dict[str, list[pytest.Function]] = defaultdict(list)
    for item in items:
        sliced = isinstance(item, pytest.Function) and hasattr(item, "callspec") and item.get_closest_marker("sliced")
        if sliced and not any(item.iter_markers("skip")):
            products[item.nodeid.partition("[")[0]].append(item)
    left = []
    for name, product in products.items():
        cases = number_values([describe_case(item) for item in product])
        chosen = cover_values(cases, random.Random(f"{SEED} {name}"))
        left += [item for number, item in enumerate(product) if number not in chosen]
    return left


def read_part(text: str) -> tuple[int, int] | None:
    """`--sweep N/M` → the part N of M; None for the whole."""
    number, slash, count = text.partition("/")
    if text == WHOLE:
        return None
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise pytest.UsageError(f"--sweep {text}: write {WHOLE}, or N/M for the part N of M, such as 1/8")
    return int(number), int(count)


def choose_part(names: list[str], number: int, count: int) -> set[str]:
    """Which cases of one sweep are part `number` of `count`: parts that are apart, each with at least one case."""
    drawn = sorted(names, key=lambda name: random.Random(f"{SEED} {name}").random())
    return set(drawn[(number - 1) % len(drawn) :: count])


def leave_sweeps(items: list[pytest.Item], number: int, count: int) -> list[pytest.Item]:
    """The cases of tests marked `sweep` that are not in part `number` of `count`; a skipped case is no choice.

    Tests of the same parameters draw the same of them, so that what a fixture builds for one of these serves all.
    """
    sweeps: dict[str, dict[str, pytest.Item]] = defaultdict(dict)
    for item in items:
        marker = item.get_closest_marker("sweep")
        if marker is not None and not any(item.iter_markers("skip")):
            test, _, parameters = item.nodeid.partition("[")
            of, case = (marker.args[0], item.nodeid) if marker.args else (test, parameters)
            sweeps[of][case] = item
    left = []
    for cases in sweeps.values():
        chosen = choose_part(list(cases), number, count)
        left += [item for case, item in cases.items() if case not in chosen]
    return left


class Study:
    """Chooses what of sweeps and products this run is to do, marks what a study runs, names the case of a campaign that
    failed, and writes the table of a study.

    part: N of M, of every sweep; None for the whole.
    """

    def __init__(self, part: tuple[int, int] | None = None) -> None:
        self.part = None if is_study() else part
        self.cases: dict[str, str] = {}
        self.outcomes: dict[str, str] = {}
        self.seconds: dict[str, float] = defaultdict(float)

    def describe_run(self) -> str:
        """Which part of what has a whole form this run does."""
        sweeps = "whole" if self.part is None else "part {} of {} (all: --sweep whole)".format(*self.part)
        return f"campaigns: {'whole' if is_study() else 'a slice'}, sweeps: {sweeps}, UNIMODAL_SEED={SEED}"

    def pytest_report_header(self) -> str:
        return self.describe_run()

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_line(self.describe_run())

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
        """Marks what a study runs; behind the choice by -k and -m, leaves the rest of sweeps and products to others."""
        for item in items:
            test = getattr(item, "obj", None)
            drawn = getattr(test, "is_hypothesis_test", False) or "campaign" in getattr(item, "fixturenames", ())
            if drawn or item.get_closest_marker("sliced"):
                item.add_marker("study")
        yield
        left = set() if is_study() else set(slice_products(items))
        if self.part is not None:
            left |= set(leave_sweeps([item for item in items if item not in left], *self.part))
        if left:
            config.hook.pytest_deselected(items=list(left))
            items[:] = [item for item in items if item not in left]

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Notes how many examples a property test draws."""
        test = getattr(item, "obj", None)
        if is_study() and getattr(test, "is_hypothesis_test", False):
            chosen = getattr(test, "_hypothesis_internal_use_settings", None) or settings()
            item.user_properties.append(("cases", f"{chosen.max_examples} examples"))

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
        rows = read_page(PAGE) | self.make_rows()
        lines = [
            "# What `make study` found",
            "",
            "`make study`: random campaigns, small trainings and products whole; `make test` runs a slice of each. A",
            "study may be run in parts (`make study ARGS=tests/generation`): a run replaces the rows of its tests.",
            "",
            f"| {' | '.join(COLUMNS)} |",
            "|---|---:|---:|---|---:|",
            *(f"| {' | '.join([f'`{name}`', *rows[name]])} |" for name in sorted(rows)),
        ]
        PAGE.write_text("\n".join([*lines, ""]), encoding="utf-8")

    def make_rows(self) -> dict[str, list[str]]:
        """Test without its parameters → the other cells of its row, of this run."""
        rows = {}
        for name in {node.partition("[")[0] for node in self.outcomes}:
            nodes = [node for node in self.outcomes if node.partition("[")[0] == name]
            counts = [self.cases.get(node, "1") for node in nodes]
            whole = sum(int(count.split()[0]) for count in counts)
            unit = " examples" if any("examples" in count for count in counts) else ""
            failed = sum(self.outcomes[node] == "failed" for node in nodes)
            skipped = sum(self.outcomes[node] == "skipped" for node in nodes)
            outcome = f"{failed} of {len(nodes)} failed" if failed else "skipped" if skipped == len(nodes) else "passed"
            seconds = sum(self.seconds[node] for node in nodes)
            rows[name] = [f"{whole:,}{unit}", str(SEED), outcome, f"{seconds:.1f} s"]
        return rows


def read_page(page: Path) -> dict[str, list[str]]:
    """The rows that earlier studies left; those of tests whose file is gone are dropped."""
    if not page.exists():
        return {}
    rows = {}
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        name = cells[0].strip("`")
        if len(cells) == len(COLUMNS) and "::" in name and (page.parents[1] / name.partition("::")[0]).exists():
            rows[name] = cells[1:]
    return rows

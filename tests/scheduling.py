"""Which process runs which test under `pytest -n auto --dist loadfile`, the way of `make test`.

The tests of one file stay together, so that what a file builds is built once, and so do those of a few folders. The
folders with the largest budgets come first: what is left at the end is short, and no process waits long for the other.
"""

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.timing import ROOT, read_budgets

#: folders whose files share what takes seconds to begin: a Chromium, a Hub and what was exported, prepared data
TOGETHER = ("tests/serve_page/", "tests/export/", "tests/evaluation/")
UNKNOWN_S = 25.0  # of the files beside the folders


class FileScheduling(LoadScopeScheduling):
    """Hands out whole files, in the order in which they were collected."""

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if file.startswith(TOGETHER):
            return file.rpartition("/")[0]
        return file


class Order:
    """The plugin: heavy folders first, and the scheduler above."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        if not hasattr(config, "workerinput"):
            return  # one process runs them as they are named
        budgets = read_budgets((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))

        def rank(item: pytest.Item) -> float:
            folder, _, rest = item.nodeid.removeprefix("tests/").partition("/")
            return -budgets.get(folder, UNKNOWN_S) if rest else -UNKNOWN_S

        items.sort(key=rank)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Producer) -> LoadScopeScheduling | None:
        return FileScheduling(config, log) if config.getvalue("dist") == "loadfile" else None

"""What every test shares: no hub, one thread, fixed seeds, and property tests that draw the same examples each run."""

import gc
import os

# Before torch or huggingface_hub is imported by a test module.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests' tensors are tiny: a second thread only waits

import random
import signal
import sys

import pytest
from hypothesis import settings

from tests.campaigns import TIMES, WHOLE, Study, campaign, is_study, read_part
from tests.commands import HAS_GPU, Commands, Launcher, fork_launcher
from tests.scheduling import Order
from tests.timing import ProcessorTime
from tests.tokenizers.references import VARIABLE, Reference, References, find_reference_folder, read_reference

os.fsync = lambda descriptor: None  # what a test writes need not outlive a power cut; each call waits for the disk
gc.disable()  # until all test modules are imported: nothing of theirs is garbage, and each collection walks it all

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so begun by a shell in the background; some tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Deadlines measure the machine's load; fixed examples make a failure on one machine a failure on all.
# A study draws others.
settings.register_profile("unimodal", deadline=None, derandomize=True, database=None, max_examples=50)
settings.register_profile("study", deadline=None, database=None, max_examples=50 * TIMES, print_blob=True)
settings.load_profile("study" if is_study() else "unimodal")


__all__ = ["campaign"]


@pytest.fixture(autouse=True)
def own_registrations():
    """Every test starts from the same random state, and what it registers (a medium, a family of tokenizers) is gone
    for the next one of its process."""
    seed_generators()
    tables = [
        vars(sys.modules[name])[table]
        for name, table in (("unimodal.media.registry", "MEDIA"), ("unimodal.tokenizers.registry", "FAMILIES"))
        if name in sys.modules
    ]
    before = [dict(table) for table in tables]
    yield
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept)
    loaded = sys.modules.get("unimodal.tokenizers.registry")
    if len(tables) < 2 and loaded is not None:  # first imported by this test: only the package's own families stay
        for name in [name for name, place in loaded.FAMILIES.items() if not place.startswith("unimodal.")]:
            del loaded.FAMILIES[name]


def seed_generators():
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:  # a test of the light modules does not pay for its import
        torch = sys.modules["torch"]
        # Without a GPU, manual_seed keeps a formatted stack for each kind of device, for a time when there is one.
        (torch.manual_seed if HAS_GPU else torch.default_generator.manual_seed)(0)


LAUNCHER = pytest.StashKey[Launcher | None]()


def pytest_collection_finish(session):
    """Everything that tests import is there and nothing has run: the process that commands are forks of begins now."""
    gc.freeze()  # what the tests' modules and libraries hold stays: a collection need not walk it again
    gc.enable()
    gc.set_threshold(20_000, 20, 20)
    if any("commands" in getattr(item, "fixturenames", ()) for item in session.items):
        session.config.stash[LAUNCHER] = fork_launcher()


def pytest_unconfigure(config):
    launcher = config.stash.get(LAUNCHER, None)
    if launcher is not None:
        launcher.close()


@pytest.fixture(scope="session")
def commands(request):
    """Runs commands as processes of their own, without the seconds of their imports: see tests/commands.py."""
    return Commands(request.config.stash.get(LAUNCHER, None))


@pytest.fixture
def open_reference(record_property):
    """Opens a reference file of the authors' code, such as "visual/titok"; skips the test where there are none."""

    def read(name: str) -> Reference:
        folder = find_reference_folder()
        if folder is None:
            pytest.skip(f"reference files of the authors' code are not here: ${VARIABLE} is not set")
        record_property("reference", name)
        return read_reference(folder, name)

    return read


def pytest_addoption(parser):
    parser.addoption("--sweep", default=WHOLE, metavar="N/M", help=f"the part N of M of every sweep, or {WHOLE}")


def pytest_configure(config):
    config.pluginmanager.register(References())
    config.pluginmanager.register(ProcessorTime())
    config.pluginmanager.register(Study(read_part(config.getoption("--sweep"))))
    config.pluginmanager.register(Order())


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))

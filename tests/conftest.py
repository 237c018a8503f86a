"""What every test shares: no hub, one thread, fixed seeds, and property tests that draw the same examples each run."""

import os

# Before torch or huggingface_hub is imported by a test module.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests' tensors are tiny: a second thread only waits

import random
import signal
import sys

import pytest
from hypothesis import settings

from tests.campaigns import TIMES, Study, campaign, count_examples, is_study
from tests.timing import ProcessorTime

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so begun by a shell in the background; some tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Deadlines measure the machine's load; fixed examples make a failure on one machine a failure on all.
# A study draws others.
settings.register_profile("unimodal", deadline=None, derandomize=True, database=None, max_examples=50)
settings.register_profile("study", deadline=None, database=None, max_examples=50 * TIMES, print_blob=True)
settings.load_profile("study" if is_study() else "unimodal")


__all__ = ["campaign", "count_examples"]


@pytest.fixture(autouse=True)
def fixed_seeds():
    """Every test starts from the same random state, whatever ran before it."""
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:  # a test of the light modules does not pay for its import
        sys.modules["torch"].manual_seed(0)


def pytest_configure(config):
    config.pluginmanager.register(ProcessorTime())
    config.pluginmanager.register(Study())


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))

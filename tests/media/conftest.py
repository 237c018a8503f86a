"""Media files are small here and written by the hundred: do not wait for the disk."""

import os

import pytest


@pytest.fixture(autouse=True, scope="module")
def no_waiting_for_the_disk():
    patch = pytest.MonkeyPatch()
    patch.setattr(os, "fsync", lambda descriptor: None)
    yield
    patch.undo()

"""torchaudio must import beside any torch: with its extension if that loads, with the stand-in if not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools import fit_torchaudio
from unimodal._torchaudio import name_fitting_version

REPOSITORY = Path(__file__).resolve().parents[1]

LOADS = """
_IS_TORCHAUDIO_EXT_AVAILABLE = True
_IS_ALIGN_AVAILABLE = True
def fail_if_no_align(function):
    return function
"""
FAILS = """
from . import utils
_IS_TORCHAUDIO_EXT_AVAILABLE = True
raise {error}("libcudart.so.13: cannot open\\nshared object file")
"""
FUNCTIONS = """
from torchaudio._extension import _IS_TORCHAUDIO_EXT_AVAILABLE, fail_if_no_align
@fail_if_no_align
def forced_align(x):
    return x
"""


def run(code: str, *paths: Path) -> str:
    """The output of a fresh interpreter, which must exit with 0."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, [*paths, REPOSITORY])))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=100)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def fake(tmp_path: Path):
    """A package named torchaudio whose extension does what the test asks."""

    def make(extension: str) -> Path:
        package = tmp_path / "torchaudio"
        (package / "_extension").mkdir(parents=True)
        (package / "_extension" / "__init__.py").write_text(extension)
        (package / "_extension" / "utils.py").write_text("value = 3\n")
        (package / "__init__.py").write_text("from . import _extension\nfrom . import functional\n")
        (package / "functional.py").write_text(FUNCTIONS)
        return tmp_path

    return make


def test_a_working_extension_is_used_as_it_is(fake):
    code = (
        "import unimodal, torchaudio; import torchaudio.functional as f; "
        "print(f._IS_TORCHAUDIO_EXT_AVAILABLE, torchaudio._extension._IS_ALIGN_AVAILABLE, f.forced_align(5), "
        "unimodal._torchaudio.find_problem())"
    )
    assert run(code, fake(LOADS)).split() == ["True", "True", "5", "None"]


@pytest.mark.parametrize("error", ["OSError", "ImportError", "RuntimeError"])
def test_a_broken_extension_is_replaced_and_says_why(fake, error):
    code = """
import unimodal, torchaudio
import torchaudio.functional as f
import torchaudio._extension.utils as u
print(f._IS_TORCHAUDIO_EXT_AVAILABLE, torchaudio._extension._IS_RIR_AVAILABLE, u.value)
try:
    f.forced_align(5)
except RuntimeError as error:
    print(error)
try:
    torchaudio._extension.something_else
except AttributeError as error:
    print(error)
print(unimodal._torchaudio.find_problem())
"""
    flags, why, unknown, problem = run(code, fake(FAILS.format(error=error))).splitlines()
    assert "libcudart.so.13" in problem
    assert flags == "False False 3"
    assert "forced_align" in why and "libcudart.so.13: cannot open shared object file" in why
    assert "something_else" in unknown


def test_without_us_the_broken_one_fails(fake):
    """Guards the test above: the fake is really broken."""
    code = "try:\n    import torchaudio\nexcept OSError:\n    print('broken')"
    assert run(code, fake(FAILS.format(error="OSError"))).strip() == "broken"


def test_importing_the_package_is_light_and_idempotent():
    code = """
import sys, unimodal
from unimodal import _torchaudio
finders = len(sys.meta_path)
_torchaudio.prepare()
print(len(sys.meta_path) == finders, [m for m in ("torch", "torchaudio", "numpy", "transformers") if m in sys.modules])
"""
    assert run(code).strip() == "True []"


def test_the_installed_torchaudio_resamples_whatever_its_extension_does():
    import torch
    import torchaudio.functional

    import unimodal._torchaudio

    assert any(type(finder).__module__ == unimodal._torchaudio.__name__ for finder in sys.meta_path)
    sine = torch.sin(torch.arange(1600) * 0.1)
    assert torchaudio.functional.resample(sine, 16000, 8000).shape == (800,)


def test_the_build_that_fits_is_named():
    assert name_fitting_version("2.13.0+cpu", "2.11.1") == "torchaudio==2.11.1+cpu"
    assert name_fitting_version("2.13.0", "2.11.1+cpu") == "torchaudio==2.11.1"


@pytest.mark.parametrize(
    ("problem", "status", "done"), [(None, 0, "loads"), ("no", 0, "installed"), ("no", 1, "after")]
)
def test_a_torchaudio_that_fits_is_installed_where_there_is_one(monkeypatch, problem, status, done):
    commands = []

    def install(command, **_):
        commands.append(command)
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(fit_torchaudio, "find_problem", lambda: problem)
    monkeypatch.setattr(
        fit_torchaudio.importlib.metadata, "version", {"torch": "2.13.0+cpu", "torchaudio": "2.11.1"}.get
    )
    monkeypatch.setattr(fit_torchaudio.subprocess, "run", install)
    assert done in fit_torchaudio.fit("file:///index")
    wanted = ["torchaudio==2.11.1+cpu", "--extra-index-url", "file:///index"]
    assert [command[-3:] for command in commands] == ([] if problem is None else [wanted])

"""torchaudio must import beside any torch: with its extension if that loads, with the stand-in if not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
        "print(f._IS_TORCHAUDIO_EXT_AVAILABLE, torchaudio._extension._IS_ALIGN_AVAILABLE, f.forced_align(5))"
    )
    assert run(code, fake(LOADS)).split() == ["True", "True", "5"]


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
"""
    flags, why, unknown = run(code, fake(FAILS.format(error=error))).splitlines()
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

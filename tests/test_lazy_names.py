"""`import unimodal` is light, and its names are loaded when they are asked for."""

import subprocess
import sys

import pytest

import unimodal
from unimodal import _version
from unimodal.pipeline import AnswerSettings, Unimodal, load
from unimodal.sequence.document import Document, Image


def test_the_names_are_those_of_their_modules():
    assert unimodal.load is load and unimodal.Unimodal is Unimodal and unimodal.AnswerSettings is AnswerSettings
    assert unimodal.Image is Image and unimodal.Document is Document
    assert unimodal.__version__ == _version.__version__
    assert all(hasattr(unimodal, name) for name in unimodal.__all__) and set(unimodal.__all__) <= set(dir(unimodal))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        unimodal.lod  # noqa: B018


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = (
        "import sys, unimodal; heavy = {'torch', 'transformers', 'numpy'}\n"
        "assert not heavy & set(sys.modules); unimodal.Image; assert 'torch' not in sys.modules\n"
        "import unimodal.model.build; assert not {'transformers', 'peft'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

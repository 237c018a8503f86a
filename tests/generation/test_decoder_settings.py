"""Settings of decoders and searches by name: what makes no sense is told, in one line, when one is made."""

import dataclasses
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import get_origin, get_type_hints

import pytest

from unimodal.generation import DECODERS, make_decoder
from unimodal.generation.search import SEARCHES, make_search

MAKERS = {**dict.fromkeys(DECODERS, make_decoder), **dict.fromkeys(SEARCHES, make_search)}


def list_settings(name):
    owner = getattr(import_module({**DECODERS, **SEARCHES}[name][0]), {**DECODERS, **SEARCHES}[name][1])
    kinds = get_type_hints(owner)
    return [(field.name, kinds[field.name]) for field in dataclasses.fields(owner) if field.repr]


def list_wrong(kind):
    """Values that are not of a kind."""
    if kind in (int, float, bool):
        return ["x", None, (), float("nan"), *([True] if kind is not bool else [0])]
    if get_origin(kind) is Mapping:
        return [0, "x", None, ["a"]]
    return [0, "x", None, ["x"], [None]] if get_origin(kind) is Sequence else []


CASES = [(name, field, wrong) for name in MAKERS for field, kind in list_settings(name) for wrong in list_wrong(kind)]


@pytest.mark.parametrize(("name", "field", "wrong"), CASES, ids=str)
def test_a_value_of_a_wrong_kind_is_one_line(name, field, wrong):
    with pytest.raises(ValueError, match=f"{name}: {field}") as caught:
        MAKERS[name](name, **{field: wrong})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", MAKERS)
def test_an_unknown_setting_is_told_with_those_that_there_are(name):
    with pytest.raises(ValueError, match=f"{name}: there is no setting 'smell'; choose from ") as caught:
        MAKERS[name](name, smell=1)
    assert all(field in str(caught.value) for field, _ in list_settings(name))


@pytest.mark.parametrize("name", [name for name in DECODERS if "window" in dict(list_settings(name))])
@pytest.mark.parametrize("window", [0, -1])
def test_a_window_has_a_place(name, window, vocabulary):
    """Told when one is made, or else before anything is written."""
    with pytest.raises(ValueError, match=f"window is {window}; give at least "):
        make_decoder(name, window=window).check(vocabulary, ["image"])

"""Compression by name, for what speaks to the model through the pipeline.

with compress(model, "divprune", keep=0.25) as session:
    model.answers(...)
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING

from unimodal.compression import METHODS, CompressionSession, Method

if TYPE_CHECKING:
    from unimodal.pipeline.unimodal import Unimodal

__all__ = ["compress"]


def compress(model: Unimodal, method: str, **settings: object) -> CompressionSession:
    """A context in which the model compresses what it reads by the method of a name.

    settings: the fields of the method's class. Raises ValueError for a name or a setting that there is not, and for a
    value that the method refuses.
    """
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(METHODS)}"
        raise ValueError(f"no compression method {method!r}; {hint}")
    make: Callable[..., Method] = METHODS[method]
    try:
        chosen = make(**settings)
    except TypeError as error:
        raise ValueError(f"{method}: {str(error).split('__init__() ')[-1]}") from None
    return chosen(model)

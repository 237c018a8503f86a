"""Compression by name, for what speaks to the model through the pipeline: evaluation, the server.

with compressed(model, "divprune", keep=0.25) as session:
    model.answers(...)
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from unimodal.compression import BASELINES, METHODS, CacheCompressor

if TYPE_CHECKING:
    from unimodal.compression.running.session import Session
    from unimodal.pipeline.unimodal import Unimodal

__all__ = ["BASELINES", "METHOD_NAMES", "acts_on_the_cache", "compressed"]

METHOD_NAMES = tuple(METHODS)


def compressed(model: Unimodal, method: str, **settings: Any) -> Session:
    """A context in which the model compresses what it reads. Raises ValueError for a name or setting that is none."""
    if method not in METHODS:
        near = difflib.get_close_matches(method, METHODS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(METHODS)}"
        raise ValueError(f"no compression method {method!r}; {hint}")
    try:
        chosen = METHODS[method](**settings)
    except TypeError as error:
        raise ValueError(f"{method}: {str(error).split('__init__() ')[-1]}") from None
    return chosen(model)


def acts_on_the_cache(method: str) -> bool:
    """Whether a method leaves the tokens alone and drops or selects entries of the cache."""
    return issubclass(METHODS[method], CacheCompressor)

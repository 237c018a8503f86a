"""A function of a user's own, by "module:function": what goes wrong in it is one line that names it."""

from __future__ import annotations

import functools
import importlib
import traceback
from collections.abc import Callable, Iterator
from typing import cast

from unimodal.files import describe_error


def load_function(name: str) -> Callable[..., object]:
    """The function, which raises ValueError for whatever it raises itself; what it gives in turns is a list.

    Raises ValueError if it cannot be imported, and for what is no function.
    """
    module, _, place = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), place)
    except Exception as error:  # whatever the module does when it is imported
        kind = "" if isinstance(error, (ImportError, AttributeError)) else f"{type(error).__name__}: "
        raise ValueError(
            f"{name!r} cannot be imported ({kind}{describe_error(error)}); write it as module:function"
        ) from None
    if not callable(found):
        raise ValueError(f"{name!r} is no function; write it as module:function")
    function = cast(Callable[..., object], found)

    @functools.wraps(function)
    def call(*args: object, **settings: object) -> object:
        try:
            given = function(*args, **settings)
            return list(given) if isinstance(given, Iterator) else given
        except Exception as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            raise ValueError(
                f"{name} failed: {type(error).__name__} in {at.name}, line {at.lineno} ({describe_error(error)})"
            ) from error

    return call
